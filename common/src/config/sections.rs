//! Configuration sections that producers and workers share.
//!
//! What each key means, its unit and why its default is what it is stands in `compose/config/*.toml`, which are compiled in.

use serde::{Deserialize, Serialize};

use super::load::{Invalid, Validate};
use crate::amqp::address::Address;
use crate::amqp::topology::{Names, QueueKind};
use crate::telemetry::logs;
use crate::tier::Tier;

/// Most shards of a tier: each is a queue on the broker and a consumer in every worker.
pub const MAX_SHARDS: u16 = 64;

/// `[broker]`: how to reach RabbitMQ.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// Addresses, tried in order.
    pub addresses: Vec<Address>,
    /// Heartbeat interval; a dead link is noticed after two.
    pub heartbeat_seconds: u16,
    /// Bound on one connection attempt.
    pub connect_timeout_seconds: u64,
    /// Files for `amqps://` addresses.
    #[serde(default)]
    pub tls: Tls,
}

/// `[broker.tls]`: PEM files; empty paths are not used.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificate authorities to trust besides the system's.
    pub ca_file: String,
    /// Client certificate chain, for mutual TLS.
    pub certificate_file: String,
    /// Its private key.
    pub key_file: String,
}

impl Default for Broker {
    /// A broker on this host with its default user, as the default files have it.
    fn default() -> Self {
        Self {
            addresses: vec![
                "amqp://guest:guest@127.0.0.1:5672/%2f".parse().expect("the default address is valid"),
            ],
            heartbeat_seconds: 10,
            connect_timeout_seconds: 10,
            tls: Tls::default(),
        }
    }
}

impl Validate for Broker {
    fn validate(&self) -> Result<(), Invalid> {
        if self.addresses.is_empty() {
            return Err(Invalid::new(
                "broker.addresses",
                "empty",
                "name at least one, or set MILLRACE_AMQP_URL",
            ));
        }
        let user = self.addresses[0].user();
        if let Some(other) = self.addresses.iter().find(|address| address.user() != user) {
            return Err(Invalid::new("broker.addresses", other, "use the same user in every address"));
        }
        within("broker.heartbeat_seconds", self.heartbeat_seconds.into(), 1, 300)?;
        within("broker.connect_timeout_seconds", self.connect_timeout_seconds, 1, 300)?;
        if self.tls.certificate_file.is_empty() != self.tls.key_file.is_empty() {
            return Err(Invalid::new("broker.tls", "half set", "certificate_file and key_file go together"));
        }
        Ok(())
    }
}

/// `[topology]`: names, tiers and queue types; the same everywhere in a deployment.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// Prefix of every name on the broker.
    pub prefix: String,
    /// Type of the tier queues.
    pub queue_type: QueueKind,
    /// Type of reply queues.
    pub reply_queue_type: QueueKind,
    /// Cap on the bytes waiting in one reply queue.
    pub reply_max_bytes: u64,
    /// Delay steps of retries, ascending.
    pub retry_delays_ms: Vec<u64>,
    /// Cap on the messages in `<prefix>.dead`.
    pub dead_max_length: u64,
    /// Tiers, highest first.
    pub tiers: Vec<TierSettings>,
    /// Whether this process creates missing objects when it starts.
    pub declare: bool,
}

/// `[[topology.tiers]]`: one tier.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TierSettings {
    /// Name; part of routing keys.
    pub name: Tier,
    /// Share of the fleet while several tiers are backlogged.
    pub weight: u32,
    /// The largest part, from 0.01 to 1, of the fleet's time for a model that the tier may take, even where others leave it idle.
    #[serde(default = "whole")]
    pub max_share: f64,
    /// Most messages waiting in the queues of this tier and a model, its shards' parts alike.
    pub max_length: u64,
    /// Most bytes waiting there.
    pub max_length_bytes: u64,
    /// Budget of a request that brings none.
    pub default_budget_ms: u64,
    /// Queues that the tier's tenants are spread over, for each model.
    #[serde(default = "one_shard")]
    pub shards: u16,
}

fn one_shard() -> u16 {
    1
}

fn whole() -> f64 {
    1.0
}

impl Default for Topology {
    /// `premium` : `enterprise` : `free` at 8 : 4 : 1.
    fn default() -> Self {
        let tier = |name: &str, weight| TierSettings {
            name: Tier::new(name).expect("the default tiers have valid names"),
            weight,
            max_share: whole(),
            max_length: 100_000,
            max_length_bytes: 512 << 20,
            default_budget_ms: 3_600_000,
            shards: one_shard(),
        };
        Self {
            prefix: "millrace".to_owned(),
            queue_type: QueueKind::Quorum,
            reply_queue_type: QueueKind::Classic,
            reply_max_bytes: 256 << 20,
            retry_delays_ms: vec![50, 250, 1_000, 5_000],
            dead_max_length: 10_000,
            tiers: vec![tier("premium", 8), tier("enterprise", 4), tier("free", 1)],
            declare: true,
        }
    }
}

impl Topology {
    /// The names that follow from the prefix.
    pub fn names(&self) -> Names {
        Names::new(&self.prefix)
    }

    /// The settings of a tier.
    pub fn tier(&self, tier: &Tier) -> Option<&TierSettings> {
        self.tiers.iter().find(|settings| settings.name == *tier)
    }
}

impl Validate for Topology {
    fn validate(&self) -> Result<(), Invalid> {
        crate::tier::check_name(&self.prefix)
            .map_err(|error| Invalid::new("topology.prefix", &self.prefix, error.to_string()))?;
        for (key, kind) in
            [("topology.queue_type", self.queue_type), ("topology.reply_queue_type", self.reply_queue_type)]
        {
            if !matches!(kind, QueueKind::Quorum | QueueKind::Classic) {
                return Err(Invalid::new(key, kind, "write quorum or classic"));
            }
        }
        if self.tiers.is_empty() || self.tiers.len() > 16 {
            return Err(Invalid::new("topology.tiers", self.tiers.len(), "name 1 to 16 tiers"));
        }
        for (index, tier) in self.tiers.iter().enumerate() {
            let key = |name: &str| format!("topology.tiers[{index}].{name}");
            within(&key("weight"), tier.weight.into(), 1, 10_000)?;
            if !(0.01..=1.0).contains(&tier.max_share) {
                return Err(Invalid::new(key("max_share"), tier.max_share, "name a part from 0.01 to 1"));
            }
            within(&key("max_length"), tier.max_length, 1, 100_000_000)?;
            within(&key("max_length_bytes"), tier.max_length_bytes, 1 << 20, 1 << 42)?;
            within(&key("default_budget_ms"), tier.default_budget_ms, 1, 30 * 86_400_000)?;
            within(&key("shards"), tier.shards.into(), 1, MAX_SHARDS.into())?;
            if self.tiers[..index].iter().any(|other| other.name == tier.name) {
                return Err(Invalid::new(key("name"), &tier.name, "each tier once"));
            }
        }
        let ascends = self.retry_delays_ms.is_sorted_by(|a, b| a < b);
        if self.retry_delays_ms.is_empty() || !ascends || self.retry_delays_ms[0] == 0 {
            return Err(Invalid::new(
                "topology.retry_delays_ms",
                format!("{:?}", self.retry_delays_ms),
                "list at least one delay, ascending, none of 0",
            ));
        }
        within("topology.reply_max_bytes", self.reply_max_bytes, 1 << 20, 1 << 42)?;
        within("topology.dead_max_length", self.dead_max_length, 1, 10_000_000)
    }
}

/// `[limits]`: bounds on what a message may hold.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest body in bytes.
    pub max_body_bytes: usize,
    /// Most elements of one tensor.
    pub max_elements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let limits = crate::protocol::codec::Limits::default();
        Self { max_body_bytes: limits.max_body_bytes, max_elements: limits.max_elements }
    }
}

impl From<Limits> for crate::protocol::codec::Limits {
    fn from(limits: Limits) -> Self {
        Self { max_body_bytes: limits.max_body_bytes, max_elements: limits.max_elements }
    }
}

impl Validate for Limits {
    fn validate(&self) -> Result<(), Invalid> {
        within("limits.max_body_bytes", self.max_body_bytes as u64, 1024, 512 << 20)?;
        within("limits.max_elements", self.max_elements as u64, 1, 1 << 31)
    }
}

/// `[logs]`: what is written to standard error.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// `text` for people, `json` for collectors.
    pub format: LogFormat,
    /// Levels by target, in `tracing-subscriber`'s syntax.
    pub filter: String,
}

/// Forms of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

impl Default for Logs {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

impl Validate for Logs {
    fn validate(&self) -> Result<(), Invalid> {
        logs::check_filter(&self.filter).map_err(|error| Invalid::new("logs.filter", &self.filter, error))
    }
}

/// Checks a number against its bounds.
///
/// # Errors
/// [`Invalid`], naming both bounds.
pub fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), Invalid> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Invalid::new(key, value, format!("write a number from {least} to {most}")))
    }
}
