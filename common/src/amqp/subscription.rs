//! What a process asks of the broker to be sent.

use std::sync::Arc;

use tokio::sync::watch;

/// A queue to consume from.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub(super) queue: Arc<str>,
    pub(super) demand: watch::Receiver<Demand>,
    pub(super) is_stream: bool,
}

/// What a consumer asks of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Unacknowledged deliveries the broker may have with this consumer at a time.
    pub prefetch: u16,
    /// Consumers of a higher priority are served first, as long as they have room.
    pub priority: i16,
}

impl Subscription {
    /// A consumer that asks for the same all the time.
    pub fn fixed(queue: impl Into<Arc<str>>, prefetch: u16) -> Self {
        let (_, demand) = watch::channel(Demand { prefetch, priority: 0 });
        Self { queue: queue.into(), demand, is_stream: false }
    }

    /// A reader of a stream, from its beginning.
    pub fn stream(queue: impl Into<Arc<str>>, prefetch: u16) -> Self {
        Self { is_stream: true, ..Self::fixed(queue, prefetch) }
    }

    /// A consumer that follows what its owner sends.
    pub fn following(queue: impl Into<Arc<str>>, demand: watch::Receiver<Demand>) -> Self {
        Self { queue: queue.into(), demand, is_stream: false }
    }
}
