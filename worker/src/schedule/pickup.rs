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
    /// Tiers that some instances are reserved for.
    reserved: TierSet,
    /// What the reserved instances serve that wait here for work.
    resting: Vec<TierSet>,
    is_closed: bool,
    /// Closes when nothing waits any more.
    is_finishing: bool,
    /// Nothing is handed out but `alone`.
    is_paused: bool,
    /// To run with nothing beside it, and its tier.
    alone: Option<(usize, W)>,
    /// Batches handed out whose instances have not come back.
    running: usize,
}

impl<W: Waiting> State<W> {
    /// What an instance of these tiers should do.
    ///
    /// One of all tiers leaves a tier to the instances reserved for it: while one of those rests, for it has been woken; and while it has
    /// other work itself, unless more waits than fits a batch. A request that joined the others' large batch would wait for all of it.
    fn next(&mut self, serves: TierSet, now: Instant) -> Next<W> {
        if serves != TierSet::ALL || self.reserved.is_empty() {
            return self.scheduler.next(serves, now);
        }
        let awake = self.resting.iter().fold(serves, |left, resting| left.without(*resting));
        let first = awake.without(self.scheduler.short(self.reserved));
        let due = match self.scheduler.next(first, now) {
            run @ Next::Run { .. } => return run,
            Next::WaitUntil(due) => Some(due),
            Next::Idle => None,
        };
        match (self.scheduler.next(awake, now), due) {
            (Next::WaitUntil(other), Some(due)) => Next::WaitUntil(due.min(other)),
            (next, _) => next,
        }
    }
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
            state: Mutex::new(State {
                scheduler,
                reserved: TierSet::NONE,
                resting: Vec::new(),
                is_closed: false,
                is_finishing: false,
                is_paused: false,
                alone: None,
                running: 0,
            }),
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
        let has_reserved = !state.reserved.is_empty();
        drop(state);
        if has_reserved {
            // One alone might be one that does not serve the tier.
            self.changed.notify_all();
        } else {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Blocks the thread of an instance that serves these tiers until a batch is due; `None` once closed. `is_back` says that it has
    /// collected before.
    pub fn collect(&self, serves: TierSet, is_back: bool) -> Option<Collected<W>> {
        let mut state = self.lock();
        if serves != TierSet::ALL {
            state.reserved = state.reserved.or(serves);
        }
        state.running -= usize::from(is_back);
        loop {
            if state.is_closed {
                return None;
            }
            if let Some((_, alone)) = state.alone.take_if(|(tier, _)| serves.contains(*tier)) {
                self.hand_out(&mut state);
                return Some(Collected { batch: vec![alone], expired: Vec::new(), charged: 0 });
            }
            if state.is_paused {
                state = self.rest(state, serves, None);
                continue;
            }
            let now = Instant::now();
            state = match state.next(serves, now) {
                Next::Run { batch, expired, charged } => {
                    self.hand_out(&mut state);
                    return Some(Collected { batch, expired, charged });
                }
                Next::Idle => self.rest(state, serves, None),
                Next::WaitUntil(due) => self.rest(state, serves, Some(due.saturating_duration_since(now))),
            };
        }
    }

    /// Waits for a change, at most so long.
    fn rest<'a>(
        &self,
        mut state: MutexGuard<'a, State<W>>,
        serves: TierSet,
        patience: Option<Duration>,
    ) -> MutexGuard<'a, State<W>> {
        let is_reserved = serves != TierSet::ALL;
        if is_reserved {
            state.resting.push(serves);
        }
        let mut state = match patience {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if is_reserved && let Some(place) = state.resting.iter().position(|resting| *resting == serves) {
            state.resting.swap_remove(place);
        }
        state
    }

    fn hand_out(&self, state: &mut State<W>) {
        state.running += 1;
        if !state.reserved.is_empty() && !state.scheduler.is_empty() {
            // Others may rest that left this one's tiers to it: there is more than it has taken.
            self.changed.notify_all();
        }
        self.close_if_finished(state);
    }

    fn close_if_finished(&self, state: &mut State<W>) {
        if state.is_finishing && state.scheduler.is_empty() && state.alone.is_none() {
            state.is_closed = true;
            self.changed.notify_all();
        }
    }

    /// Closes as soon as everything that waits has been handed out.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.is_finishing = true;
        self.close_if_finished(&mut state);
    }

    /// Whether it takes and hands out nothing any more.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// From now on nothing is handed out but what is to run alone, until [`Pickup::resume`].
    pub fn pause(&self) {
        self.lock().is_paused = true;
    }

    /// Hands out batches again.
    pub fn resume(&self) {
        self.lock().is_paused = false;
        self.changed.notify_all();
    }

    /// Whether nothing runs, nor waits to run alone.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.running == 0 && state.alone.is_none()
    }

    /// Hands a request to the next instance that serves its tier, by itself and before all others, paused or not. One at a time.
    ///
    /// # Errors
    /// The request itself when the pickup is closed.
    pub fn push_alone(&self, tier: usize, waiting: W) -> Result<(), W> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(waiting);
        }
        state.alone = Some((tier, waiting));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Goes on with other weights and caps of the tiers.
    pub fn retune(&self, weights: &[u32], max_shares: &[f64], instances: usize) {
        self.lock().scheduler.retune(weights, max_shares, instances);
        // Some may rest until a cap opens that is none any more.
        self.changed.notify_all();
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

    /// Takes what a collected batch, or a part of one, cost that gave no answers.
    pub fn failed<'a>(
        &self,
        requests: impl Iterator<Item = (usize, &'a W::Tenant, u32)> + Clone,
        charged: i64,
        busy: Duration,
    ) where
        W::Tenant: 'a,
    {
        self.lock().scheduler.failed(requests, charged, busy);
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
        let mut unstarted = state.scheduler.drain();
        unstarted.extend(state.alone.take().map(|(_, alone)| alone));
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

#[cfg(test)]
mod tests;
