//! Loading: the commented default file is compiled in *as* the defaults, so it cannot go stale.
//!
//! Layers, later wins: the default file; the file given; `MILLRACE__SECTION__KEY=value` variables (a list as comma-separated
//! text); `MILLRACE_AMQP_URL`, the short form of `MILLRACE__BROKER__ADDRESSES`.

use std::path::Path;

use config::builder::DefaultState;
use config::{Config, ConfigBuilder, Environment, File, FileFormat};
use serde::de::DeserializeOwned;

/// Why a configuration cannot be used. The texts name key, value and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or variable that cannot be read, an unknown key, or a value of the wrong type.
    #[error("configuration: {0}")]
    Load(#[from] config::ConfigError),
    /// A value out of bounds.
    #[error("configuration: {0}")]
    Invalid(#[from] Invalid),
}

/// A value that its key does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}: {remedy}")]
pub struct Invalid {
    /// Dotted key.
    pub key: String,
    /// The value found.
    pub value: String,
    /// The bound, and what to write instead.
    pub remedy: String,
}

impl Invalid {
    /// A violation of `key`'s bound.
    pub fn new(key: impl Into<String>, value: impl ToString, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.to_string(), remedy: remedy.into() }
    }
}

/// A configuration that can check itself.
pub trait Validate {
    /// Checks every value against its bounds.
    ///
    /// # Errors
    /// The first violation.
    fn validate(&self) -> Result<(), Invalid>;
}

/// Keys whose value in the environment is a list: text alone does not tell `a,b` from a name with a comma.
const LISTS: [&str; 4] =
    ["broker.addresses", "models.serve", "topology.retry_delays_ms", "worker.gateway_users"];

/// Loads and validates a configuration.
///
/// # Errors
/// [`ConfigError`].
pub fn load<T>(defaults: &str, file: Option<&Path>) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Validate,
{
    let mut layers = Config::builder().add_source(File::from_str(defaults, FileFormat::Toml));
    if let Some(file) = file {
        layers = layers.add_source(File::from(file).format(FileFormat::Toml));
    }
    let mut environment = Environment::with_prefix("MILLRACE")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .list_separator(",");
    for key in LISTS {
        environment = environment.with_list_parse_key(key);
    }
    layers = layers.add_source(environment);
    if let Ok(address) = std::env::var("MILLRACE_AMQP_URL") {
        let addresses: Vec<&str> = address.split(',').collect();
        layers = layers.set_override("broker.addresses", addresses)?;
    }
    checked(layers)
}

/// As [`load`], of a file's text alone: the environment says nothing.
///
/// # Errors
/// [`ConfigError`].
pub fn load_text<T: DeserializeOwned + Validate>(defaults: &str, text: &str) -> Result<T, ConfigError> {
    let layer = |text| File::from_str(text, FileFormat::Toml);
    checked(Config::builder().add_source(layer(defaults)).add_source(layer(text)))
}

fn checked<T: DeserializeOwned + Validate>(layers: ConfigBuilder<DefaultState>) -> Result<T, ConfigError> {
    let loaded: T = layers.build()?.try_deserialize()?;
    loaded.validate()?;
    Ok(loaded)
}
