//! The worker's configuration: its own sections beside the shared ones.
//!
//! Meanings, units and reasons stand in `compose/config/worker.toml`, which is compiled in as the defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_common::config::load::{self, ConfigError, Invalid, Validate};
use millrace_common::config::sections::{Broker, Limits, Logs, Topology, within};
use serde::{Deserialize, Serialize};

use crate::live::Features;

/// The commented defaults.
pub const DEFAULTS: &str = include_str!("../../compose/config/worker.toml");

/// Everything a worker is told at start.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach RabbitMQ.
    pub broker: Broker,
    /// Names, tiers, queue types.
    pub topology: Topology,
    /// Bounds on messages.
    pub limits: Limits,
    /// Logs.
    pub logs: Logs,
    /// The process.
    pub worker: Process,
    /// What is served.
    pub models: Models,
    /// The inference library.
    pub onnxruntime: OnnxRuntime,
    /// Intake.
    pub scheduling: Scheduling,
    /// Replies.
    pub replies: Replies,
    /// Work that can be left out.
    pub features: Features,
    // The clients' own section, which means nothing here: one file and one environment can serve both.
    #[serde(default, skip_serializing, rename = "requests")]
    _requests: serde::de::IgnoredAny,
}

/// `[worker]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Unique name; empty makes one up.
    pub name: String,
    /// Bound on a stop.
    pub grace_seconds: u64,
    /// Threads of the asynchronous runtime.
    pub runtime_threads: usize,
    /// Exists while requests are consumed; empty for none.
    pub ready_file: PathBuf,
    /// Users whose `x-tenant` is believed.
    pub gateway_users: Vec<String>,
}

/// `[models]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Folder of models.
    pub repository: PathBuf,
    /// Models to serve; empty means all.
    pub serve: Vec<String>,
    /// Between two looks at the repository; 0 for none after the start.
    pub poll_seconds: u64,
}

/// `[onnxruntime]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxRuntime {
    /// Path of the library.
    pub library: PathBuf,
}

/// `[scheduling]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduling {
    /// Requests fetched ahead beyond the instances' batches.
    pub prefetch_extra: u16,
    /// The time whose work they are, at most, unless confirms take longer.
    pub prefetch_wait_ms: u16,
    /// Byte budget of a lane.
    pub lane_max_bytes: usize,
}

/// `[replies]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Replies {
    /// Replies awaiting their confirm.
    pub max_in_flight: usize,
    /// Their bytes.
    pub max_in_flight_bytes: usize,
    /// Bound on a confirm.
    pub confirm_timeout_seconds: u64,
    /// How long a full reply queue is retried, unless one user's refused replies hold an eighth of `max_in_flight_bytes`.
    pub refused_retry_seconds: u64,
}

impl Config {
    /// Loads defaults, file and environment, and checks them.
    ///
    /// # Errors
    /// [`ConfigError`], naming key, value and remedy.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut config = Self::read(file)?;
        if config.worker.name.is_empty() {
            config.worker.name = made_up_name();
        }
        Ok(config)
    }

    /// As [`Config::load`]; the worker's name may be empty.
    ///
    /// # Errors
    /// [`ConfigError`], naming key, value and remedy.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        load::load(DEFAULTS, file)
    }

    /// Bound on a stop.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.worker.grace_seconds)
    }
}

fn made_up_name() -> String {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host: String =
        host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let random = uuid::Uuid::now_v7().simple().to_string();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{}-{}", std::process::id(), &random[26..])
}

impl Validate for Config {
    fn validate(&self) -> Result<(), Invalid> {
        self.broker.validate()?;
        self.topology.validate()?;
        self.limits.validate()?;
        self.logs.validate()?;
        within("worker.grace_seconds", self.worker.grace_seconds, 1, 3_600)?;
        within("worker.runtime_threads", self.worker.runtime_threads as u64, 1, 64)?;
        if self.worker.name.len() > 100 {
            return Err(Invalid::new("worker.name", &self.worker.name, "use at most 100 bytes"));
        }
        let ready_file = &self.worker.ready_file;
        if ready_file.parent().is_some_and(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            return Err(Invalid::new(
                "worker.ready_file",
                ready_file.display(),
                "name a file in an existing folder",
            ));
        }
        if self.onnxruntime.library.as_os_str().is_empty() {
            return Err(Invalid::new(
                "onnxruntime.library",
                "empty",
                "set it (or MILLRACE__ONNXRUNTIME__LIBRARY) to the path of libonnxruntime.so; \
                 `cargo xtask setup` fetches one and prints the path",
            ));
        }
        within("models.poll_seconds", self.models.poll_seconds, 0, 86_400)?;
        within("scheduling.prefetch_extra", self.scheduling.prefetch_extra.into(), 1, 10_000)?;
        within("scheduling.prefetch_wait_ms", self.scheduling.prefetch_wait_ms.into(), 1, 60_000)?;
        within("scheduling.lane_max_bytes", self.scheduling.lane_max_bytes as u64, 1 << 20, 1 << 40)?;
        within("replies.max_in_flight", self.replies.max_in_flight as u64, 1, 100_000)?;
        within("replies.max_in_flight_bytes", self.replies.max_in_flight_bytes as u64, 1 << 20, 1 << 40)?;
        within("replies.confirm_timeout_seconds", self.replies.confirm_timeout_seconds, 1, 3_600)?;
        within("replies.refused_retry_seconds", self.replies.refused_retry_seconds, 0, 3_600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("onnxruntime.library = \"x\"\n{text}")).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn the_default_file_agrees_with_the_library_defaults() {
        let config = with("").unwrap();
        let json = |topology: &Topology| serde_json::to_value(topology).unwrap();
        assert_eq!(json(&config.topology), json(&Topology::default()));
        assert!(!config.worker.name.is_empty());
    }

    #[test]
    fn shards_are_one_unless_given_and_bounded() {
        let tier = "[[topology.tiers]]\nname = \"free\"\nweight = 1\nmax_length = 1\nmax_length_bytes = 1048576\n\
                    default_budget_ms = 1\n";
        let shards =
            |given: &str| with(&format!("{tier}{given}")).map(|config| config.topology.tiers[0].shards);
        assert_eq!(shards("").unwrap(), 1);
        assert_eq!(shards("shards = 64").unwrap(), 64);
        for (given, value) in [("shards = 0", "is 0"), ("shards = 65", "is 65")] {
            let error = shards(given).unwrap_err().to_string();
            assert!(error.contains("topology.tiers[0].shards") && error.contains(value), "{error}");
            assert!(error.contains("from 1 to 64"), "{error}");
        }
    }

    #[test]
    fn errors_name_key_value_and_remedy() {
        for (text, parts) in [
            ("worker.grace_seconds = 0", ["worker.grace_seconds", "0", "from 1 to 3600"]),
            ("worker.grace = 3", ["grace", "unknown field", "expected"]),
            ("broker.addresses = [\"localhost\"]", ["broker.addresses", "not a broker address", "amqp://"]),
            ("topology.queue_type = \"stream\"", ["queue_type", "stream", "quorum"]),
        ] {
            let error = with(text).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{text}: `{error}` lacks `{part}`");
            }
        }
    }
}
