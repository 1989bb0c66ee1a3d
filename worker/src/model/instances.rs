//! Every instance of this worker, those of versions that are about to go included.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

use super::backend::Backend;
use super::instance::{self, Around, Failure, Instance};
use crate::catalogue::ServedVersion;
use crate::job::Job;
use crate::schedule::tier_set::TierSet;

/// Between two looks at instances that are to end.
const JOIN_EVERY: Duration = Duration::from_millis(10);

/// What runs batches.
#[derive(Debug, Default)]
pub struct Instances {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Instance>,
    is_paused: bool,
    is_closed: bool,
}

impl Instances {
    /// Starts a version's instances, each on its own thread. Returns false where the worker stops, and starts none then.
    ///
    /// # Errors
    /// When the system has no thread to give; none is left then.
    pub fn start(
        &self,
        served: &Arc<ServedVersion>,
        backends: Vec<(TierSet, Box<dyn Backend>)>,
        around: &Around,
    ) -> std::io::Result<bool> {
        let mut state = self.lock();
        if state.is_closed {
            return Ok(false);
        }
        if state.is_paused {
            served.pickup.pause();
        }
        for (serves, backend) in backends {
            match instance::spawn(backend, serves, Arc::clone(served), around.clone()) {
                Ok(instance) => state.running.push(instance),
                Err(error) => {
                    served.pickup.finish();
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// From now on none begins a batch, nor one that is started later, until [`Instances::resume`].
    pub fn pause(&self) {
        let mut state = self.lock();
        state.is_paused = true;
        state.running.iter().for_each(|instance| instance.served().pickup.pause());
    }

    /// Lets batches begin again.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.is_paused = false;
        state.running.iter().for_each(|instance| instance.served().pickup.resume());
    }

    /// Whether nothing runs, nor waits to run alone.
    pub fn are_idle(&self) -> bool {
        self.lock().running.iter().all(|instance| instance.served().pickup.is_idle())
    }

    /// Stops runs that take too long, and forgets instances whose versions have gone; returns why one cannot go on, if so.
    pub fn look_after(&self, now: Instant) -> Option<Failure> {
        let mut state = self.lock();
        let all = std::mem::take(&mut state.running);
        let (ended, running): (Vec<_>, Vec<_>) = all.into_iter().partition(Instance::has_ended);
        state.running = running;
        let mut failure = None;
        for instance in ended {
            let served = Arc::clone(instance.served());
            if instance.has_crashed() {
                failure = Some(Failure::Crashed);
            } else if !state.running.iter().any(|other| Arc::ptr_eq(other.served(), &served)) {
                info!(model = %served.model, version = served.version, "unloaded");
            }
        }
        let is_hung = state.running.iter().any(|instance| instance.is_hung(now));
        failure.or(is_hung.then_some(Failure::Hung))
    }

    /// Lets none begin a batch any more, nor be started; returns what waited for one.
    pub fn close(&self) -> Vec<Job> {
        let mut state = self.lock();
        state.is_closed = true;
        state.running.iter().flat_map(|instance| instance.served().pickup.close()).collect()
    }

    /// Blocks until all threads have ended, after [`Instances::close`]. Runs that take too long are stopped meanwhile.
    pub fn join(&self) {
        let running = std::mem::take(&mut self.lock().running);
        while running.iter().any(|instance| !instance.has_ended()) {
            let now = Instant::now();
            for instance in &running {
                instance.is_hung(now);
            }
            std::thread::sleep(JOIN_EVERY);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for list operations that leave it whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
