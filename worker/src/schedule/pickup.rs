//! Where instances wait for and collect their next batch.
//!
//! A free instance comes here itself: its slot is reserved before the batch forms, and the batch forms at the last
//! moment. A mutex and a condition variable, not a channel: a batch waiting in a channel could not grow any more.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::lane::Waiting;
use super::scheduler::{Next, Pace, Scheduler};
use super::tier_set::TierSet;

/// A scheduler shared between intake, which pushes, and instances, which collect.
#[derive(Debug)]
pub struct Pickup<W: Waiting> {
    state: Mutex<State<W>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<W: Waiting> {
    scheduler: Scheduler<W>,
    /// Some instances do not serve every tier.
    has_reserved: bool,
    is_closed: bool,
}

/// A batch for an instance.
#[derive(Debug)]
pub struct Collected<W> {
    /// To run together; may be empty.
    pub batch: Vec<W>,
    /// Past their deadline: to be answered, not run.
    pub expired: Vec<W>,
    /// Microseconds a row that their tiers were charged, to be corrected by [`Pickup::ran`].
    pub charged: i64,
}

impl<W: Waiting> Pickup<W> {
    /// An open pickup.
    pub fn new(scheduler: Scheduler<W>) -> Self {
        Self {
            state: Mutex::new(State { scheduler, has_reserved: false, is_closed: false }),
            changed: Condvar::new(),
        }
    }

    /// Adds a request. Never blocks for long: the lock is held for queue operations only.
    ///
    /// # Errors
    /// The request itself when the pickup is closed.
    pub fn push(&self, tier: usize, waiting: W) -> Result<(), W> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(waiting);
        }
        state.scheduler.push(tier, waiting);
        let has_reserved = state.has_reserved;
        drop(state);
        if has_reserved {
            // One alone might be one that does not serve the tier.
            self.changed.notify_all();
        } else {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Blocks the thread of an instance that serves these tiers until a batch is due; `None` once closed.
    pub fn collect(&self, serves: TierSet) -> Option<Collected<W>> {
        let mut state = self.lock();
        state.has_reserved |= serves != TierSet::ALL;
        loop {
            if state.is_closed {
                return None;
            }
            let now = Instant::now();
            state = match state.scheduler.next(serves, now) {
                Next::Run { batch, expired, charged } => return Some(Collected { batch, expired, charged }),
                Next::Idle => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Next::WaitUntil(due) => {
                    let patience = due.saturating_duration_since(now);
                    self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Takes what a batch cost that was not collected here, as the warm-up's.
    pub fn learn(&self, rows: u32, busy: Duration) {
        self.lock().scheduler.learn(rows, busy);
    }

    /// Takes what a collected batch cost.
    pub fn ran<'a>(
        &self,
        requests: impl Iterator<Item = (usize, &'a W::Tenant, u32)> + Clone,
        charged: i64,
        busy: Duration,
    ) where
        W::Tenant: 'a,
    {
        self.lock().scheduler.ran(requests, charged, busy);
    }

    /// How fast an instance is, by what was learned.
    pub fn pace(&self) -> Pace {
        self.lock().scheduler.pace()
    }

    /// Rows that clients should join in one request, at most.
    pub fn pack_rows(&self) -> u32 {
        self.lock().scheduler.pack_rows()
    }

    /// What batches cost, as far as is known: rows, and microseconds of a batch of so many.
    pub fn costs(&self) -> Vec<(u32, u64)> {
        self.lock().scheduler.costs().known()
    }

    /// What batches of requests cost, the warm-up's left out: rows, and microseconds of a batch of so many.
    pub fn measured(&self) -> Vec<(u32, u64)> {
        self.lock().scheduler.costs().measured()
    }

    /// Closes: instances get nothing more, and everything that waits comes back to be returned to the broker.
    pub fn close(&self) -> Vec<W> {
        let mut state = self.lock();
        state.is_closed = true;
        let unstarted = state.scheduler.drain();
        drop(state);
        self.changed.notify_all();
        unstarted
    }

    /// Requests waiting in the lane of tier number `tier`.
    pub fn waiting(&self, tier: usize) -> usize {
        self.lock().scheduler.waiting(tier)
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        // The lock guards queue operations that leave the lanes consistent at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
