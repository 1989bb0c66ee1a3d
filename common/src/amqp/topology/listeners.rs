//! Queues that one process reads: its replies, and what it hears.

use super::super::connection::Generation;
use super::{Argument, Binding, Queue, QueueKind, Topology, arguments, durable, text};
use crate::config::sections::Topology as Settings;

impl Topology {
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

    /// A private queue that hears what all workers are told.
    pub fn control_listener(settings: &Settings, queue: &str) -> Self {
        let exchange = settings.names().control_exchange();
        let name = queue.to_owned();
        // The overflow is the default one, which no policy can change where it is given.
        let arguments =
            arguments([("x-max-length", Argument::Number(10_000)), ("x-overflow", text("drop-head"))]);
        Self {
            bindings: vec![Binding { exchange, queue: name.clone(), routing_key: String::new() }],
            queues: vec![Queue { name, kind: QueueKind::Exclusive, arguments }],
            ..Self::default()
        }
    }

    /// The same on one connection of the process: its exclusive queues are named after it, for the broker may still hold those of the
    /// connection before. It does until it notices that that one is gone, and RabbitMQ 4 until the node is back that they were on.
    pub(in crate::amqp) fn on_connection(&self, generation: Generation) -> Self {
        let mut own = self.clone();
        for queue in &mut own.queues {
            queue.name = self.name_on_connection(&queue.name, generation);
        }
        for binding in &mut own.bindings {
            binding.queue = self.name_on_connection(&binding.queue, generation);
        }
        own
    }

    /// What a queue is called there, see [`Topology::on_connection`].
    pub(in crate::amqp) fn name_on_connection(&self, queue: &str, generation: Generation) -> String {
        let is_own = |own: &Queue| own.kind == QueueKind::Exclusive && own.name == queue;
        if self.queues.iter().any(is_own) { format!("{queue}.{generation}") } else { queue.to_owned() }
    }
}
