//! Suspects run one at a time, with nothing else in the process: if it ends, the broker counts a run against the one that ended it,
//! and against nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_common::amqp::connection::{LinkState, wait_up};
use millrace_common::amqp::fetcher::Fetcher;
use millrace_common::lifecycle::Lifecycle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;

use super::intake::Intake;
use crate::model::instances::Instances;

/// Between two looks whether suspects wait; where none did lately, doubled up to the second.
const LOOK_EVERY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(8)];
/// Between two looks whether the last batches have run.
const IDLE_EVERY: Duration = Duration::from_millis(1);
/// How long the others wait for a running batch of theirs to end; doubled up to the second each time that it was not enough.
const IDLE_WITHIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];
/// How long requests may be on their way to a queue of suspects before a suspect is put off.
const MOVED_WITHIN: Duration = Duration::from_secs(1);
/// How long an acknowledgement may take to leave.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(5);
/// How long the others wait for an answer to be published and confirmed: a full reply queue must not hold them.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);
/// Requests on their way to a queue of suspects at a time, at most; more than prefetch windows hold.
const MOVES: u32 = 1 << 20;

/// Which suspects this process has to do with at the moment.
#[derive(Debug)]
pub struct Solo {
    moving: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl Default for Solo {
    fn default() -> Self {
        Self { moving: Arc::new(Semaphore::new(MOVES as usize)), running: Arc::new(Semaphore::new(1)) }
    }
}

impl Solo {
    /// A request is on its way to the queue of suspects, for as long as the permit is held.
    pub async fn moving(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.moving).acquire_owned().await.expect("never closed")
    }

    /// Waits until none is on its way; none sets out while the permit is held. One whose delivery is not acknowledged yet would
    /// come back when a suspect ends the process, and be put into the queue of suspects twice.
    async fn none_moves(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.moving).acquire_many_owned(MOVES).await.expect("never closed")
    }

    /// A suspect is worked on, for as long as the permit is held.
    pub async fn running(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.running).acquire_owned().await.expect("never closed")
    }

    /// Waits until none is worked on, its delivery acknowledged or given back.
    pub async fn done(&self) {
        drop(self.running.acquire().await);
    }
}

/// Runs what waits in these queues until `lifecycle` stops; takes nothing more then. At least half of the time is left to the other
/// requests.
///
/// Begins a while after `consuming` is up: where workers end soon after their start, they have served others meanwhile.
pub async fn run(
    fetcher: Fetcher,
    queues: Vec<Arc<str>>,
    intake: Arc<Intake>,
    mut consuming: watch::Receiver<LinkState>,
    lifecycle: Lifecycle,
) {
    // An error says that nobody will consume any more: the worker ends.
    let _ = unless_stopping(&lifecycle, wait_up(&mut consuming, Duration::MAX)).await;
    let mut patience = IDLE_WITHIN[0];
    let mut pause = LOOK_EVERY[0];
    while unless_stopping(&lifecycle, tokio::time::sleep(pause)).await.is_some() {
        pause = (pause * 2).min(LOOK_EVERY[1]);
        for queue in &queues {
            while let Some(Some(1..)) = unless_stopping(&lifecycle, fetcher.depth(queue)).await {
                pause = LOOK_EVERY[0];
                let started = Instant::now();
                let ran = run_one(&fetcher, queue, &intake, patience, &lifecycle).await;
                patience = match ran {
                    true => IDLE_WITHIN[0],
                    false => (patience * 2).min(IDLE_WITHIN[1]),
                };
                unless_stopping(&lifecycle, tokio::time::sleep(started.elapsed())).await;
                if !ran {
                    break;
                }
            }
        }
    }
}

async fn unless_stopping<T>(lifecycle: &Lifecycle, waiting: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = lifecycle.stopping() => None,
        done = waiting => Some(done),
    }
}

/// Returns false where running batches took longer than `patience`, or the broker.
async fn run_one(
    fetcher: &Fetcher,
    queue: &Arc<str>,
    intake: &Intake,
    patience: Duration,
    lifecycle: &Lifecycle,
) -> bool {
    let moved = async {
        intake.solo.done().await;
        timeout(MOVED_WITHIN, intake.solo.none_moves()).await.ok()
    };
    let Some(Some(_none_moves)) = unless_stopping(lifecycle, moved).await else { return false };
    let paused = Paused { instances: &intake.instances, lifecycle };
    paused.begin();
    if unless_stopping(lifecycle, timeout(patience, paused.idle())).await.is_none_or(|idle| idle.is_err()) {
        debug!(%queue, ?patience, "a suspect waits: batches of other requests run for long");
        return false;
    }
    // Not given up in between: what was fetched and is not run counts as a run that ended its process. Another worker may have been
    // quicker.
    let Some(delivery) = fetcher.fetch(queue).await else { return false };
    intake.accept_suspect(delivery).await;
    let ended = async {
        paused.idle().await;
        let _ = timeout(SETTLED_WITHIN, intake.solo.done()).await;
        tokio::time::sleep(ACKNOWLEDGED_WITHIN).await;
    };
    unless_stopping(lifecycle, ended).await.is_some()
}

/// From its beginning no instance of any model begins a batch while this lives, nor after, where the worker stops.
struct Paused<'a> {
    instances: &'a Instances,
    lifecycle: &'a Lifecycle,
}

impl Paused<'_> {
    fn begin(&self) {
        self.instances.pause();
    }

    /// Waits until what runs has run.
    async fn idle(&self) {
        while !self.instances.are_idle() {
            tokio::time::sleep(IDLE_EVERY).await;
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if !self.lifecycle.is_stopping() {
            self.instances.resume();
        }
    }
}
