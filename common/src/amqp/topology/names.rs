//! Names of everything on the broker.

use std::fmt;
use std::sync::Arc;

use crate::tier::Tier;

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

    /// The queue of one model and tier; where the tier has shards, the first of its queues.
    pub fn request_queue(&self, model: &str, tier: &Tier) -> String {
        format!("{}.request.{model}.{tier}", self.prefix)
    }

    /// The queue of one shard, counted from 0. The first has the name that the only one has, so that what waits there when a
    /// tier gets shards, or loses them, stays where it is consumed.
    pub fn shard_queue(&self, model: &str, tier: &Tier, shard: u16) -> String {
        match shard {
            0 => self.request_queue(model, tier),
            _ => format!("{}.request.{model}.{tier}.{shard}", self.prefix),
        }
    }

    /// The exchange that spreads the requests of one model and tier over its shards, by tenant.
    pub fn shard_exchange(&self, model: &str, tier: &Tier) -> String {
        format!("{}.shard.{model}.{tier}", self.prefix)
    }

    /// The exchange of requests that are suspected of ending the processes that run them; key `<model>.<tier>`.
    pub fn solo_exchange(&self) -> String {
        format!("{}.solo", self.prefix)
    }

    /// The queue of one model's suspects, of all tiers.
    pub fn solo_queue(&self, model: &str) -> String {
        format!("{}.solo.{model}", self.prefix)
    }

    /// Whether a queue is that of a model's suspects.
    pub fn is_solo_queue(&self, queue: &str) -> bool {
        queue.strip_prefix(&*self.solo_exchange()).is_some_and(|rest| rest.starts_with('.'))
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

    /// The exchange of what all workers are told at once.
    pub fn control_exchange(&self) -> String {
        format!("{}.control", self.prefix)
    }

    /// The exchange and stream of the live switches.
    pub fn switches(&self) -> String {
        format!("{}.switches", self.prefix)
    }

    /// The exchange of the fleet's directory.
    pub fn status_exchange(&self) -> String {
        format!("{}.status", self.prefix)
    }
}
