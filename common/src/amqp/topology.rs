//! Exchanges, queues, bindings and policies as data: what `millrace topology` applies, compares and exports.
//!
//! Arguments carry what correctness needs and cannot change later; limits are policies, because they can.

mod declare;
mod listeners;
mod names;
mod policies;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::amqp::message::header;
use crate::config::sections::{MAX_SHARDS, TierSettings, Topology as Settings};

pub use declare::{ApplyError, DeclareError, apply, delete_queue};
pub use names::Names;

/// Runs of a suspect by itself that may end with their process; after the last it is poison.
const SOLO_RUNS: i64 = 3;
/// Brokers from 4.0 drop what they have delivered 20 times unless told otherwise: also what was only looked at.
const LOOKED_AT: i64 = 1_000_000;

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
    /// Routes to one binding, the same for equal values of a header. A plugin that RabbitMQ ships with.
    #[serde(rename = "x-consistent-hash")]
    ConsistentHash,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Arguments.
    pub arguments: Arguments,
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
    /// For one connection alone, and named after it where it is consumed.
    Exclusive,
    /// A log that every consumer reads from where it likes.
    Stream,
}

impl fmt::Display for QueueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
            Self::Exclusive => "exclusive",
            Self::Stream => "stream",
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

/// A binding of an exchange to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeBinding {
    /// The exchange that messages come from.
    pub from: String,
    /// The exchange that they go on to.
    pub to: String,
    /// Routing key or pattern.
    pub routing_key: String,
}

/// What another number of shards has left on the broker, and what would route requests elsewhere or twice. Never a queue: it may
/// hold requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// The exchange of this name, with its bindings.
    Exchange(String),
    /// A binding.
    Binding(Binding),
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
    /// Bindings of queues.
    pub bindings: Vec<Binding>,
    /// Bindings of exchanges.
    pub exchange_bindings: Vec<ExchangeBinding>,
    /// Policies; not declared over AMQP.
    pub policies: Vec<Policy>,
    /// What is removed once everything else is there.
    pub stale: Vec<Stale>,
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
        topology.exchange(names.solo_exchange(), ExchangeKind::Direct);
        topology.exchange(names.status_exchange(), ExchangeKind::Topic);
        topology.exchange(names.control_exchange(), ExchangeKind::Fanout);
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
        inbox.extend(arguments([
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", Argument::Number(LOOKED_AT)),
        ]));
        topology.fanout_queue(names.dead_inbox(), inbox);
        // Evidence, not duties: when full it drops its oldest, so that it never stops settlement.
        let mut evidence = durable(QueueKind::Quorum);
        evidence.extend(arguments([
            ("x-overflow", text("drop-head")),
            ("x-delivery-limit", Argument::Number(LOOKED_AT)),
        ]));
        topology.fanout_queue(names.dead(), evidence);
        topology.exchange(names.switches(), ExchangeKind::Fanout);
        topology.stream(names.switches());
        topology.policies = policies::policies(settings);
        topology
    }

    /// The tier queues of one model, and the queue of its suspects.
    pub fn model(settings: &Settings, model: &str) -> Self {
        let mut topology = Self::default();
        for tier in &settings.tiers {
            topology.add_tier(settings, model, tier);
        }
        topology.add_solo(settings, model);
        topology
    }

    /// Three runs for each that is put there; the broker counts those that ended with their process.
    fn add_solo(&mut self, settings: &Settings, model: &str) {
        let names = settings.names();
        let mut with = durable(QueueKind::Quorum);
        with.extend(arguments([
            ("x-overflow", text("reject-publish")),
            ("x-dead-letter-exchange", text(&names.dead_inbox())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-delivery-limit", Argument::Number(SOLO_RUNS - 1)),
        ]));
        let name = names.solo_queue(model);
        self.bindings.extend(settings.tiers.iter().map(|tier| Binding {
            exchange: names.solo_exchange(),
            queue: name.clone(),
            routing_key: Names::request_key(model, &tier.name),
        }));
        self.queues.push(Queue { name, kind: QueueKind::Quorum, arguments: with });
    }

    fn add_tier(&mut self, settings: &Settings, model: &str, tier: &TierSettings) {
        let names = settings.names();
        for shard in 0..tier.shards {
            let name = names.shard_queue(model, &tier.name, shard);
            self.queues.push(Queue { name, kind: settings.queue_type, arguments: held(settings) });
        }
        let only = Binding {
            exchange: names.request_exchange(),
            queue: names.request_queue(model, &tier.name),
            routing_key: Names::request_key(model, &tier.name),
        };
        let exchange = names.shard_exchange(model, &tier.name);
        if tier.shards == 1 {
            self.bindings.push(only);
            self.stale.push(Stale::Exchange(exchange));
            return;
        }
        let to_shard = |shard| Binding {
            exchange: exchange.clone(),
            queue: names.shard_queue(model, &tier.name, shard),
            // The weight: alike for all.
            routing_key: "1".to_owned(),
        };
        self.bindings.extend((0..tier.shards).map(to_shard));
        self.stale.extend((tier.shards..MAX_SHARDS).map(to_shard).map(Stale::Binding));
        self.exchange_bindings.push(ExchangeBinding {
            from: only.exchange.clone(),
            to: exchange.clone(),
            routing_key: only.routing_key.clone(),
        });
        self.stale.push(Stale::Binding(only));
        self.exchanges.push(Exchange {
            name: exchange,
            kind: ExchangeKind::ConsistentHash,
            arguments: arguments([("hash-header", text(header::TENANT))]),
        });
    }

    /// Adds the objects of `other`.
    pub fn extend(&mut self, other: Self) {
        self.exchanges.extend(other.exchanges);
        self.queues.extend(other.queues);
        self.bindings.extend(other.bindings);
        self.exchange_bindings.extend(other.exchange_bindings);
        self.policies.extend(other.policies);
        self.stale.extend(other.stale);
    }

    fn exchange(&mut self, name: String, kind: ExchangeKind) {
        self.exchanges.push(Exchange { name, kind, arguments: Arguments::new() });
    }

    /// Kept for longer than any switch holds. The broker forgets whole segments only, hence the small ones.
    fn stream(&mut self, name: String) {
        let mut with = durable(QueueKind::Stream);
        with.extend(arguments([
            ("x-max-age", text("14D")),
            ("x-max-length-bytes", Argument::Number(64 << 20)),
            ("x-stream-max-segment-size-bytes", Argument::Number(1 << 20)),
        ]));
        self.bindings.push(Binding {
            exchange: name.clone(),
            queue: name.clone(),
            routing_key: String::new(),
        });
        self.queues.push(Queue { name, kind: QueueKind::Stream, arguments: with });
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

/// The arguments of a tier's queues.
fn held(settings: &Settings) -> Arguments {
    let mut with = durable(settings.queue_type);
    with.extend(arguments([
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text(&settings.names().dead_inbox())),
    ]));
    match settings.queue_type {
        // One level above normal: more levels cost up to 20 % of the broker's rate (measured 2026-11).
        QueueKind::Classic => with.extend(arguments([("x-max-priority", Argument::Number(1))])),
        _ => with.extend(arguments([
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-delivery-limit", Argument::Number(100)),
        ])),
    }
    with
}
