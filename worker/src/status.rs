//! Tells the fleet's directory once a second, and whenever it is asked, what this worker serves and holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_common::amqp::connection::LinkState;
use millrace_common::amqp::message::now_ms;
use millrace_common::amqp::properties::Properties;
use millrace_common::amqp::publisher::{Message, Publisher};
use millrace_common::config::sections::Topology;
use millrace_common::fleet::{ANNOUNCE_EVERY, FORMAT, Fleet, LaneStatus, ModelStatus, WorkerStatus};
use millrace_common::switches::Feature;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::catalogue::Catalogue;
use crate::inbound::route::Route;
use crate::live::Live;

/// The least time between an announcement and one that somebody asks for: asking must not cost the fleet its time.
const APART: Duration = Duration::from_millis(250);

/// Announces one worker.
pub struct Announcer {
    /// The worker's name.
    pub worker: String,
    /// When it started, milliseconds since the epoch.
    pub started_ms: u64,
    /// Whether it drains.
    pub is_draining: AtomicBool,
    /// The connection that requests come over.
    pub consuming: watch::Receiver<LinkState>,
    /// What it serves.
    pub catalogue: Arc<Catalogue>,
    /// Names and tiers.
    pub topology: Topology,
    /// Where announcements go.
    pub publisher: Publisher,
    /// What is switched.
    pub live: Arc<Live>,
    /// Told when somebody wants an announcement.
    pub asked: Arc<Notify>,
    /// Whether it was told that announcements are too long.
    pub is_too_long: AtomicBool,
}

impl Announcer {
    /// Announces every second, when something is switched and when it is asked, for ever.
    pub async fn run(&self, routes: &[Route]) {
        let mut ticks = tokio::time::interval(ANNOUNCE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut last, mut due) = (Instant::now(), None);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.live.changed() => {}
                // Whoever asks until then is answered by the same announcement.
                () = self.asked.notified() => {
                    due.get_or_insert(last + APART);
                    continue;
                }
                () = tokio::time::sleep_until(due.unwrap_or(last)), if due.is_some() => {}
            }
            (last, due) = (Instant::now(), None);
            self.announce(routes).await;
        }
    }

    /// Announces once, within a second. Failures are not worth more than the next announcement.
    pub async fn announce(&self, routes: &[Route]) {
        let body = match serde_json::to_vec(&self.status(routes)) {
            Ok(body) => body,
            Err(error) => return warn!(%error, "cannot write the status"),
        };
        if body.len() > Fleet::MAX_ANNOUNCEMENT && !self.is_too_long.swap(true, Ordering::Relaxed) {
            let (bytes, most) = (body.len(), Fleet::MAX_ANNOUNCEMENT);
            warn!(
                bytes,
                most,
                "nobody reads an announcement of this length, so clients do not know this worker: serve fewer models and versions in \
                 each (models.serve, version_policy)"
            );
        }
        let message = Message {
            exchange: self.topology.names().status_exchange().into(),
            routing_key: self.worker.clone(),
            properties: Properties::new().with_content_type("application/json"),
            body: body.into(),
            mandatory: false,
        };
        // Given up in time: while the broker is away announcements must not pile up, and a stop must not wait for one.
        let _ = tokio::time::timeout(ANNOUNCE_EVERY, self.publisher.publish(message)).await;
    }

    fn status(&self, routes: &[Route]) -> WorkerStatus {
        let mut models: Vec<ModelStatus> =
            self.catalogue.all().into_iter().map(|(served, is_default)| served.status(is_default)).collect();
        if !self.live.has(Feature::Packing) {
            models.iter_mut().for_each(|model| model.pack_rows = 1);
        }
        WorkerStatus {
            format: FORMAT,
            worker: self.worker.clone(),
            started_ms: self.started_ms,
            now_ms: now_ms(),
            is_ready: self.is_ready(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            models,
            switches: self.live.switches(),
            allows_cache: self.live.has(Feature::Cache),
            problems: self.catalogue.problems(),
            lanes: routes.iter().map(|route| self.lane(route)).collect(),
        }
    }

    fn is_ready(&self) -> bool {
        let is_consuming = matches!(&*self.consuming.borrow(), LinkState::Up(_));
        is_consuming && !self.is_draining.load(Ordering::Relaxed)
    }

    fn lane(&self, route: &Route) -> LaneStatus {
        let free = u64::try_from(route.budget.available_permits()).unwrap_or(0);
        let versions = self.catalogue.versions(&route.model);
        LaneStatus {
            model: route.model.clone(),
            tier: self.topology.tiers[route.tier].name.to_string(),
            requests: versions.iter().map(|served| served.pickup.waiting(route.tier) as u64).sum(),
            bytes: u64::from(route.budget_units).saturating_sub(free) * 1024,
            served_rows: self.catalogue.counts(&route.model).map_or(0, |counts| counts.rows_of(route.tier)),
        }
    }
}
