//! The directory: a listener that keeps [`Fleet`] up to date from the workers' announcements.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::amqp::connection::{Connector, LinkState};
use crate::amqp::consumer::{Accept, ConsumerGroup, Delivery, Subscription};
use crate::amqp::topology::Topology;
use crate::config::sections;
use crate::fleet::{Fleet, ModelStatus};

/// Deliveries in flight to a listener; announcements are small and quickly read.
const PREFETCH: u16 = 100;

/// Listens to the fleet, until it is dropped.
#[derive(Debug)]
pub struct Directory {
    fleet: Arc<Listener>,
    group: ConsumerGroup,
}

#[derive(Debug, Default)]
struct Listener {
    fleet: Mutex<Fleet>,
}

impl Accept for Listener {
    async fn accept(&self, delivery: Delivery) {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner).hear(&delivery.body, Instant::now());
        // A stale ticket means that the announcement comes again or expires; both are fine.
        let _ = delivery.ticket.ack();
    }
}

impl Directory {
    /// Listens in the background, over a connection of its own.
    pub fn listen(connector: Connector, settings: &sections::Topology) -> Self {
        let queue: Arc<str> = format!("{}.status.{}", settings.prefix, uuid::Uuid::now_v7().simple()).into();
        let topology = Topology::status_listener(settings, &queue);
        let fleet = Arc::new(Listener::default());
        let subscription = Subscription::fixed(queue, PREFETCH);
        let group =
            ConsumerGroup::spawn(connector, "directory", topology, vec![subscription], Arc::clone(&fleet));
        Self { fleet, group }
    }

    /// What is known now. Complete about a second after the listener came up.
    pub fn fleet(&self) -> Fleet {
        self.now().clone()
    }

    /// Whether a ready worker serves this version of the model.
    pub fn serves(&self, model: &str, version: u64) -> bool {
        self.now().serves(model, version)
    }

    /// Whether clients may answer from what they keep, see [`Fleet::allows_cache`].
    pub fn allows_cache(&self) -> bool {
        self.now().allows_cache()
    }

    /// Rows that may travel in one request, see [`Fleet::pack_rows`].
    pub fn pack_rows(&self, model: &str, version: Option<u64>) -> Option<u32> {
        self.now().pack_rows(model, version)
    }

    /// How slow a worker is beside others, see [`Fleet::slowness`].
    pub fn slowness(&self, own: &[ModelStatus]) -> f64 {
        self.now().slowness(own)
    }

    fn now(&self) -> MutexGuard<'_, Fleet> {
        let mut fleet = self.fleet.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.forget_silent(Instant::now());
        fleet
    }

    /// The connection's state.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.group.state()
    }

    /// Stops listening.
    pub async fn close(&self) {
        self.group.close(Duration::from_secs(2)).await;
    }
}
