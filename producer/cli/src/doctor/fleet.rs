//! The workers: who is alive, what they serve, and whether their clocks agree with ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_common::amqp::connection::{Connector, wait_up};
use millrace_common::amqp::consumer::{Accept, ConsumerGroup, Delivery, Subscription};
use millrace_common::amqp::message::now_ms;
use millrace_common::amqp::topology::Topology;
use millrace_common::fleet::{ANNOUNCE_EVERY, FORMAT, WorkerStatus};
use millrace_producer::Config;

use super::report::Report;
use crate::models::NOBODY;

/// Two announcements of each worker at least.
const LISTEN: Duration = ANNOUNCE_EVERY.saturating_mul(2).saturating_add(Duration::from_millis(300));
/// Budgets are corrected for clock differences, and yet: logs and traces of different hosts should fit together.
const CLOCKS_DIFFER_MS: u64 = 1_000;

/// Hears announcements at the moment they come, which the fleet's directory does not keep.
#[derive(Default)]
struct Ear {
    heard: Mutex<BTreeMap<String, Heard>>,
}

struct Heard {
    status: WorkerStatus,
    /// Our clock minus the worker's, at most: each announcement was also some time on its way.
    ahead_ms: i64,
}

impl Accept for Ear {
    async fn accept(&self, delivery: Delivery) {
        if let Ok(status) = serde_json::from_slice::<WorkerStatus>(&delivery.body) {
            let ahead_ms = now_ms().cast_signed().saturating_sub(status.now_ms.cast_signed());
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let least = heard.get(&status.worker).map_or(ahead_ms, |before| before.ahead_ms.min(ahead_ms));
            heard.insert(status.worker.clone(), Heard { status, ahead_ms: least });
        }
        // A stale ticket means that the announcement comes again or expires; both are fine.
        let _ = delivery.ticket.ack();
    }
}

/// Reports on every worker; returns the models served.
pub(super) async fn check(report: &mut Report, config: &Config, connector: &Connector) -> BTreeSet<String> {
    let ear = Arc::new(Ear::default());
    let queue: Arc<str> =
        format!("{}.doctor-{}", config.topology.names().status_exchange(), uuid::Uuid::now_v7().simple())
            .into();
    let topology = Topology::status_listener(&config.topology, &queue);
    let subscription = Subscription::fixed(queue, 100);
    let group =
        ConsumerGroup::spawn(connector.clone(), "doctor", topology, vec![subscription], Arc::clone(&ear));
    // What prevents it was reported already.
    let _ = wait_up(&mut group.state(), LISTEN).await;
    tokio::time::sleep(LISTEN).await;
    group.close(Duration::from_secs(2)).await;
    let heard = std::mem::take(&mut *ear.heard.lock().unwrap_or_else(PoisonError::into_inner));
    if heard.is_empty() {
        report.bad("workers", "no worker is alive", NOBODY);
    }
    for (worker, heard) in &heard {
        tell(report, worker, heard);
    }
    tell_switches(report, heard.values().map(|heard| &heard.status));
    heard.values().flat_map(|heard| &heard.status.models).map(|model| model.name.clone()).collect()
}

fn tell(report: &mut Report, worker: &str, heard: &Heard) {
    let status = &heard.status;
    let models: Vec<String> =
        status.models.iter().map(|model| format!("{} {}", model.name, model.version)).collect();
    let line = format!(
        "{worker} serves {}",
        if models.is_empty() { "nothing".to_owned() } else { models.join(", ") }
    );
    if status.format != FORMAT {
        report.warn(
            "worker",
            &line,
            "it announces itself in another format: use the same release everywhere",
        );
    } else if !status.is_ready {
        report.warn("worker", &line, "it is stopping and takes no requests");
    } else {
        report.good("worker", &line);
    }
    for problem in &status.problems {
        report.bad(
            "repository",
            &format!("{worker}: {problem}"),
            "the worker's log says more; mend the files, it looks again by itself",
        );
    }
    let differ = heard.ahead_ms.unsigned_abs();
    if differ > CLOCKS_DIFFER_MS {
        let direction = if heard.ahead_ms > 0 { "behind" } else { "ahead of" };
        report.warn(
            "clock",
            &format!("{worker}'s clock is {differ} ms {direction} this machine's"),
            "let both follow a time server (chrony, systemd-timesyncd)",
        );
    } else {
        report.good("clock", &format!("{worker}'s differs by {differ} ms at most"));
    }
}

/// Whoever looks for what is wrong should know what is meant to be so.
fn tell_switches<'a>(report: &mut Report, workers: impl Iterator<Item = &'a WorkerStatus>) {
    let mut holding = BTreeMap::<String, usize>::new();
    for (name, value) in workers.flat_map(|worker| &worker.switches) {
        *holding.entry(format!("{name}={value}")).or_default() += 1;
    }
    for (switch, workers) in holding {
        let line =
            format!("{switch} holds on {workers} workers; `millrace switch list` says why and until when");
        report.good("switch", &line);
    }
}
