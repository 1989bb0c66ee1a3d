//! Exchanges, queues, bindings and policies as data: what `millrace topology` applies, compares and exports.
//!
//! Arguments carry what correctness needs and cannot change later; limits are policies, because they can.

mod declare;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::sections::Topology as Settings;
use crate::tier::Tier;

pub use declare::{ApplyError, DeclareError, apply, delete_queue};

/// Names of everything on the broker, from one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: Arc<str>,
}

impl Names {
    /// Names that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The exchange requests are published to; key `<model>.<tier>`.
    pub fn request_exchange(&self) -> String {
        format!("{}.request", self.prefix)
    }

    /// The routing key of a request.
    pub fn request_key(model: &str, tier: impl fmt::Display) -> String {
        format!("{model}.{tier}")
    }

    /// The queue of one model and tier.
    pub fn request_queue(&self, model: &str, tier: &Tier) -> String {
        format!("{}.request.{model}.{tier}", self.prefix)
    }

    /// The exchange replies are published to; key is the reply key.
    pub fn reply_exchange(&self) -> String {
        format!("{}.reply", self.prefix)
    }

    /// The queue of one reply key.
    pub fn reply_queue(&self, key: &str) -> String {
        format!("{}.reply.{key}", self.prefix)
    }

    /// The exchange and queue that hold a message for `delay_ms`, then send it back to its request queue.
    pub fn retry(&self, delay_ms: u64) -> String {
        format!("{}.retry.{delay_ms}", self.prefix)
    }

    /// The exchange and queue that the broker dead-letters to.
    pub fn dead_inbox(&self) -> String {
        format!("{}.dead.inbox", self.prefix)
    }

    /// The exchange and queue with what people should look at.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// The exchange of the fleet's directory.
    pub fn status_exchange(&self) -> String {
        format!("{}.status", self.prefix)
    }
}

/// Kinds of exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// Routes by pattern.
    Topic,
    /// Routes by equal key.
    Direct,
    /// Routes to every binding.
    Fanout,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
}

/// Kinds of queue. Only kinds that every broker from 3.10 to 4.3 accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum QueueKind {
    /// Replicated, durable; counts deliveries.
    #[default]
    Quorum,
    /// One replica, durable.
    Classic,
    /// Named by the broker, gone with its connection.
    Exclusive,
}

impl fmt::Display for QueueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
            Self::Exclusive => "exclusive",
        })
    }
}

impl TryFrom<String> for QueueKind {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "quorum" => Ok(Self::Quorum),
            "classic" => Ok(Self::Classic),
            _ => Err(format!("`{text}` is not a queue type: write quorum or classic")),
        }
    }
}

/// A queue argument's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Argument {
    /// A number.
    Number(i64),
    /// Text.
    Text(String),
}

/// Arguments by name.
pub type Arguments = BTreeMap<String, Argument>;

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: QueueKind,
    /// Arguments, `x-queue-type` among them except for exclusive queues.
    pub arguments: Arguments,
}

/// A binding of a queue to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The queue.
    pub queue: String,
    /// Routing key or pattern.
    pub routing_key: String,
}

/// A policy: limits that an operator may change while queues live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name.
    pub name: String,
    /// Regular expression over queue names.
    pub pattern: String,
    /// Where several match, the highest wins.
    pub priority: i64,
    /// The limits.
    pub definition: Arguments,
}

/// A set of broker objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Exchanges.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings.
    pub bindings: Vec<Binding>,
    /// Policies; not declared over AMQP.
    pub policies: Vec<Policy>,
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}

fn arguments<const N: usize>(entries: [(&str, Argument); N]) -> Arguments {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Topology {
    /// What every deployment has, whatever its models: exchanges, retry steps, dead letters.
    pub fn shared(settings: &Settings) -> Self {
        let names = settings.names();
        let mut topology = Self::default();
        topology.exchange(names.request_exchange(), ExchangeKind::Topic);
        topology.exchange(names.reply_exchange(), ExchangeKind::Direct);
        topology.exchange(names.status_exchange(), ExchangeKind::Topic);
        for &delay_ms in &settings.retry_delays_ms {
            let mut held = durable(QueueKind::Quorum);
            held.extend(arguments([
                ("x-overflow", text("reject-publish")),
                ("x-message-ttl", Argument::Number(i64::try_from(delay_ms).unwrap_or(i64::MAX))),
                ("x-dead-letter-exchange", text(&names.request_exchange())),
                ("x-dead-letter-strategy", text("at-least-once")),
            ]));
            topology.fanout_queue(names.retry(delay_ms), held);
        }
        let mut inbox = durable(QueueKind::Quorum);
        inbox.extend(arguments([("x-overflow", text("reject-publish"))]));
        topology.fanout_queue(names.dead_inbox(), inbox);
        // Evidence, not duties: when full it drops its oldest, so that it never stops settlement.
        let mut evidence = durable(QueueKind::Quorum);
        evidence.extend(arguments([("x-overflow", text("drop-head"))]));
        topology.fanout_queue(names.dead(), evidence);
        topology.policies = policies(settings);
        topology
    }

    /// The tier queues of one model.
    pub fn model(settings: &Settings, model: &str) -> Self {
        let names = settings.names();
        let mut topology = Self::default();
        for tier in settings.tiers.iter().map(|tier| &tier.name) {
            let mut with = durable(settings.queue_type);
            with.extend(arguments([
                ("x-overflow", text("reject-publish")),
                ("x-dead-letter-exchange", text(&names.dead_inbox())),
            ]));
            match settings.queue_type {
                // One level above normal: more levels cost up to 20 % of the broker's rate (measured 2026-11).
                QueueKind::Classic => with.extend(arguments([("x-max-priority", Argument::Number(1))])),
                _ => with.extend(arguments([
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-delivery-limit", Argument::Number(100)),
                ])),
            }
            let queue = names.request_queue(model, tier);
            topology.bindings.push(Binding {
                exchange: names.request_exchange(),
                queue: queue.clone(),
                routing_key: Names::request_key(model, tier),
            });
            topology.queues.push(Queue { name: queue, kind: settings.queue_type, arguments: with });
        }
        topology
    }

    /// The reply queue of one key. `expires` is how long it outlives its last consumer.
    pub fn reply(settings: &Settings, key: &str, expires: std::time::Duration) -> Self {
        let names = settings.names();
        let name = names.reply_queue(key);
        let mut with = durable(settings.reply_queue_type);
        with.extend(arguments([
            ("x-overflow", text("reject-publish")),
            ("x-expires", Argument::Number(i64::try_from(expires.as_millis()).unwrap_or(i64::MAX))),
            (
                "x-max-length-bytes",
                Argument::Number(i64::try_from(settings.reply_max_bytes).unwrap_or(i64::MAX)),
            ),
        ]));
        Self {
            bindings: vec![Binding {
                exchange: names.reply_exchange(),
                queue: name.clone(),
                routing_key: key.to_owned(),
            }],
            queues: vec![Queue { name, kind: settings.reply_queue_type, arguments: with }],
            ..Self::default()
        }
    }

    /// A private queue that hears every worker's status.
    pub fn status_listener(settings: &Settings, queue: &str) -> Self {
        Self {
            bindings: vec![Binding {
                exchange: settings.names().status_exchange(),
                queue: queue.to_owned(),
                routing_key: "#".to_owned(),
            }],
            queues: vec![Queue {
                name: queue.to_owned(),
                kind: QueueKind::Exclusive,
                // A reader that sleeps must not pile up statuses that are stale after seconds.
                arguments: arguments([
                    ("x-message-ttl", Argument::Number(3_000)),
                    ("x-max-length", Argument::Number(10_000)),
                ]),
            }],
            ..Self::default()
        }
    }

    /// Adds the objects of `other`.
    pub fn extend(&mut self, other: Self) {
        self.exchanges.extend(other.exchanges);
        self.queues.extend(other.queues);
        self.bindings.extend(other.bindings);
        self.policies.extend(other.policies);
    }

    fn exchange(&mut self, name: String, kind: ExchangeKind) {
        self.exchanges.push(Exchange { name, kind });
    }

    fn fanout_queue(&mut self, name: String, arguments: Arguments) {
        self.exchange(name.clone(), ExchangeKind::Fanout);
        self.bindings.push(Binding {
            exchange: name.clone(),
            queue: name.clone(),
            routing_key: String::new(),
        });
        self.queues.push(Queue { name, kind: QueueKind::Quorum, arguments });
    }
}

fn durable(kind: QueueKind) -> Arguments {
    // Always sent: a virtual host may default to another type, and declaring again with another type fails.
    arguments([("x-queue-type", text(&kind.to_string()))])
}

fn policies(settings: &Settings) -> Vec<Policy> {
    let prefix = settings.prefix.replace('.', "\\.");
    let number = |value: u64| Argument::Number(i64::try_from(value).unwrap_or(i64::MAX));
    let mut policies: Vec<Policy> = settings
        .tiers
        .iter()
        .map(|tier| Policy {
            name: format!("{}.request.{}", settings.prefix, tier.name),
            pattern: format!("^{prefix}\\.request\\.[A-Za-z0-9_-]+\\.{}$", tier.name),
            priority: 10,
            definition: arguments([
                ("max-length", number(tier.max_length)),
                ("max-length-bytes", number(tier.max_length_bytes)),
                ("message-ttl", number(tier.default_budget_ms)),
            ]),
        })
        .collect();
    policies.push(Policy {
        name: format!("{}.dead", settings.prefix),
        pattern: format!("^{prefix}\\.dead(\\.inbox)?$"),
        priority: 10,
        definition: arguments([("max-length", number(settings.dead_max_length))]),
    });
    policies
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What some broker from 3.10 to 4.3 refuses or ignores must not be declared.
    #[test]
    fn only_portable_objects_are_declared() {
        for queue_type in [QueueKind::Quorum, QueueKind::Classic] {
            let settings = Settings { queue_type, ..Settings::default() };
            let mut topology = Topology::shared(&settings);
            topology.extend(Topology::model(&settings, "digits"));
            topology.extend(Topology::reply(&settings, "ann.x", std::time::Duration::from_secs(1)));
            for queue in &topology.queues {
                let argument = |name: &str| queue.arguments.get(name);
                assert_eq!(argument("x-queue-type"), Some(&text(&queue.kind.to_string())), "{}", queue.name);
                let overflow = if queue.name == "millrace.dead" { "drop-head" } else { "reject-publish" };
                assert_eq!(argument("x-overflow"), Some(&text(overflow)), "{}", queue.name);
                assert!(argument("x-queue-mode").is_none() && argument("x-queue-version").is_none());
                assert!(argument("x-max-priority").is_none() || queue.kind == QueueKind::Classic);
            }
            assert_eq!(topology.exchanges.iter().filter(|e| e.kind == ExchangeKind::Direct).count(), 1);
        }
    }
}
