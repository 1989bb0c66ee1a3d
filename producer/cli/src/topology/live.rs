//! What is on the broker, as far as it is Millrace's.

use anyhow::Result;
use millrace_common::amqp::topology::Names;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::management::Management;

/// An exchange.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LiveExchange {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) durable: bool,
    #[serde(default)]
    pub(super) arguments: Map<String, Value>,
}

/// A queue.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LiveQueue {
    pub(super) name: String,
    pub(super) durable: bool,
    #[serde(default)]
    pub(super) arguments: Map<String, Value>,
    /// The broker counts them now and then; a queue just declared has no number yet.
    #[serde(default)]
    pub(super) messages: u64,
}

/// A binding; no exchange of ours has the name of a queue that it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct LiveBinding {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) routing_key: String,
}

/// A policy.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LivePolicy {
    pub(super) name: String,
    pub(super) pattern: String,
    #[serde(default)]
    pub(super) priority: i64,
    #[serde(default)]
    pub(super) definition: Map<String, Value>,
    #[serde(rename = "apply-to", default)]
    pub(super) apply_to: String,
}

/// Objects whose names begin with the prefix, without those that come and go with their users.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(super) exchanges: Vec<LiveExchange>,
    pub(super) queues: Vec<LiveQueue>,
    pub(super) bindings: Vec<LiveBinding>,
    pub(super) policies: Vec<LivePolicy>,
}

impl Live {
    /// Asks the management API; blocks.
    pub(crate) fn read(management: &Management, prefix: &str) -> Result<Self> {
        let mut live = Self {
            exchanges: management.list("exchanges")?,
            queues: management.list("queues")?,
            bindings: management.list("bindings")?,
            policies: management.list("policies")?,
        };
        live.keep(prefix);
        Ok(live)
    }

    fn keep(&mut self, prefix: &str) {
        let names = Names::new(prefix);
        let all = format!("{prefix}.");
        // A process's own queues: its replies, and what it hears.
        let exchanges = [names.reply_exchange(), names.status_exchange(), names.control_exchange()];
        let passing = exchanges.map(|exchange| format!("{exchange}."));
        let is_own =
            |name: &str| name.starts_with(&all) && !passing.iter().any(|passing| name.starts_with(passing));
        self.exchanges.retain(|exchange| is_own(&exchange.name));
        self.queues.retain(|queue| is_own(&queue.name));
        // The default exchange binds every queue by itself.
        self.bindings.retain(|binding| {
            !binding.source.is_empty() && is_own(&binding.source) && is_own(&binding.destination)
        });
        self.policies.retain(|policy| policy.name.starts_with(&all));
    }

    /// The models that have queues.
    pub(crate) fn models(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let requests = format!("{}.", Names::new(prefix).request_exchange());
        self.queues.iter().filter_map(move |queue| {
            let (model, _) = queue.name.strip_prefix(&requests)?.split_once('.')?;
            Some(model)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// What a broker with `topology` on it would answer.
    pub(in super::super) fn live(topology: &millrace_common::amqp::topology::Topology) -> Live {
        let exchanges = topology.exchanges.iter().map(|exchange| {
            json!({"name": exchange.name, "type": exchange.kind, "durable": true, "vhost": "/",
                              "arguments": exchange.arguments})
        });
        let queues = topology.queues.iter().map(
            |queue| json!({"name": queue.name, "durable": true, "arguments": queue.arguments, "node": "n"}),
        );
        let bindings = topology.bindings.iter().map(|binding| {
            json!({"source": binding.exchange, "destination": binding.queue, "destination_type": "queue",
                   "routing_key": binding.routing_key, "arguments": {}})
        });
        let exchange_bindings = topology.exchange_bindings.iter().map(|binding| {
            json!({"source": binding.from, "destination": binding.to, "destination_type": "exchange",
                   "routing_key": binding.routing_key, "arguments": {}})
        });
        let policies = topology.policies.iter().map(|policy| {
            json!({"name": policy.name, "pattern": policy.pattern, "priority": policy.priority,
                   "definition": policy.definition, "apply-to": "queues"})
        });
        let read = |values: Vec<Value>| Value::Array(values);
        Live {
            exchanges: serde_json::from_value(read(exchanges.collect())).unwrap(),
            queues: serde_json::from_value(read(queues.collect())).unwrap(),
            bindings: serde_json::from_value(read(bindings.chain(exchange_bindings).collect())).unwrap(),
            policies: serde_json::from_value(read(policies.collect())).unwrap(),
        }
    }

    #[test]
    fn what_comes_and_goes_is_not_compared() {
        let queue =
            |name: &str| LiveQueue { name: name.into(), durable: true, arguments: Map::new(), messages: 0 };
        let binding = |source: &str| LiveBinding {
            source: source.into(),
            destination: "millrace.request.m.free".into(),
            routing_key: "m.free".into(),
        };
        let mut live = Live {
            queues: [
                "millrace.request.m.free",
                "millrace.reply.a.b",
                "millrace.status.1",
                "millrace.control.1.1",
                "other",
                "millraces.x",
            ]
            .map(queue)
            .into(),
            bindings: vec![binding(""), binding("millrace.request")],
            ..Live::default()
        };
        live.keep("millrace");
        assert_eq!(live.queues.len(), 1);
        assert_eq!(live.bindings.len(), 1);
        assert!(live.models("millrace").eq(["m"]));
    }
}
