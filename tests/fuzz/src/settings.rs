//! Configuration files.

use millrace_common::config::load::{Validate, load_text};
use millrace_common::config::sections::Topology;
use millrace_worker::model::config::ModelConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::memory::metered;

/// A worker's or a client's file: what is accepted is read the same again as it prints itself.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    read_again::<millrace_worker::config::Config>(millrace_worker::config::DEFAULTS, text);
    read_again::<millrace_producer::Config>(millrace_producer::DEFAULTS, text);
}

fn read_again<T: DeserializeOwned + Serialize + Validate>(defaults: &str, text: &str) {
    let Ok(config) = metered(text.len(), || load_text::<T>(defaults, text)) else { return };
    let printed = toml::to_string(&config).expect("a configuration is TOML");
    let again: T = load_text(defaults, &printed).expect("what it prints is valid");
    let json = |config: &T| serde_json::to_value(config).expect("it serializes");
    assert_eq!(json(&again), json(&config));
}

/// A model's `config.toml`.
pub fn model_config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(config) = metered(text.len(), || toml::from_str::<ModelConfig>(text)) else { return };
    if config.validate().is_err() {
        return;
    }
    assert!(config.max_batch_size.is_none_or(|size| size >= 1));
    assert!(config.dynamic_batching.max_batch_time().is_none_or(|time| !time.is_zero()));
    let tiers = Topology::default().tiers;
    if config.check_tiers(&tiers).is_ok() && !config.instance_group.is_empty() {
        for tier in 0..tiers.len() {
            assert!(config.instance_group.iter().any(|group| group.serves(&tiers).contains(tier)));
        }
    }
}
