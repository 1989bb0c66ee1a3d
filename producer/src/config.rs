//! The client's configuration.
//!
//! Meanings, units and reasons stand in `compose/config/client.toml`, which is compiled in as the defaults.

use std::path::Path;
use std::time::Duration;

use millrace_common::config::load::{self, ConfigError, Invalid, Validate};
use millrace_common::config::sections::{Broker, Limits, Logs, Topology, within};
use millrace_common::tier::Tier;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::cache::CacheConfig;

/// The commented defaults.
pub const DEFAULTS: &str = include_str!("../../compose/config/client.toml");

/// Everything a client is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach RabbitMQ.
    pub broker: Broker,
    /// Names, tiers, queue types; the same as the workers'.
    pub topology: Topology,
    /// Bounds on messages.
    pub limits: Limits,
    /// Logs; used by the command, not by the library.
    pub logs: Logs,
    /// How requests are made.
    pub requests: Requests,
    // The worker's own sections, which mean nothing here: one file and one environment can serve both.
    #[serde(default, skip_serializing, rename = "worker")]
    _worker: IgnoredAny,
    #[serde(default, skip_serializing, rename = "features")]
    _features: IgnoredAny,
    #[serde(default, skip_serializing, rename = "models")]
    _models: IgnoredAny,
    #[serde(default, skip_serializing, rename = "onnxruntime")]
    _onnxruntime: IgnoredAny,
    #[serde(default, skip_serializing, rename = "scheduling")]
    _scheduling: IgnoredAny,
    #[serde(default, skip_serializing, rename = "replies")]
    _replies: IgnoredAny,
}

/// `[requests]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// Tier of requests that name none.
    pub tier: Tier,
    /// Deadline of requests that name none.
    pub deadline_ms: u64,
    /// Requests being published, at most.
    pub max_in_flight: usize,
    /// Their bytes.
    pub max_in_flight_bytes: usize,
    /// How long a request may wait for others to travel with; 0 sends each by itself.
    pub pack_linger_us: u64,
    /// Replies that a worker may send in one message; 0 and 1 are the same.
    pub replies_per_message: u16,
    /// Replies unacknowledged in this process, at most.
    pub reply_prefetch: u16,
    /// How long the reply queue outlives its client.
    pub reply_expires_seconds: u64,
    /// Answers that are kept.
    pub cache: CacheConfig,
}

impl Config {
    /// Loads defaults, file and environment, and checks them.
    ///
    /// # Errors
    /// [`ConfigError`], naming key, value and remedy.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        load::load(DEFAULTS, file)
    }

    /// The deadline of requests that name none.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.requests.deadline_ms)
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), Invalid> {
        self.broker.validate()?;
        self.topology.validate()?;
        self.limits.validate()?;
        self.logs.validate()?;
        let requests = &self.requests;
        if self.topology.tier(&requests.tier).is_none() {
            return Err(Invalid::new("requests.tier", &requests.tier, "name one of topology.tiers"));
        }
        within("requests.deadline_ms", requests.deadline_ms, 1, 30 * 86_400_000)?;
        within("requests.max_in_flight", requests.max_in_flight as u64, 1, 100_000)?;
        within("requests.max_in_flight_bytes", requests.max_in_flight_bytes as u64, 1 << 20, 1 << 40)?;
        within("requests.pack_linger_us", requests.pack_linger_us, 0, 1_000_000)?;
        within("requests.reply_prefetch", requests.reply_prefetch.into(), 1, 60_000)?;
        within("requests.reply_expires_seconds", requests.reply_expires_seconds, 10, 30 * 86_400)?;
        requests.cache.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_is_valid_and_agrees_with_the_library_defaults() {
        let config = Config::load(None).unwrap();
        let json = |topology: &Topology| serde_json::to_value(topology).unwrap();
        assert_eq!(json(&config.topology), json(&Topology::default()));
    }

    #[test]
    fn the_workers_file_serves_clients_too_but_typing_errors_do_not() {
        let worker = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/config/worker.toml");
        Config::load(Some(Path::new(worker))).unwrap();
        let file = std::env::temp_dir().join(format!("millrace-{}.toml", std::process::id()));
        std::fs::write(&file, "[request]\ntier = \"free\"").unwrap();
        let error = Config::load(Some(&file)).unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(error.contains("request"), "{error}");
    }
}
