//! Whether an idle instance waits for company, where the model's configuration gives a delay.

use std::time::{Duration, Instant};

use super::super::lane::{Lane, Waiting};
use super::super::tier_set::TierSet;
use super::Scheduler;

/// What publishing and confirming a reply takes, about.
const WAY_BACK: Duration = Duration::from_millis(5);

impl<W: Waiting> Scheduler<W> {
    /// Until when the `rows` rows of this key that wait may go on waiting for more, if at all: not beside a full batch of another key,
    /// nor beside anybody who has waited for as long already, nor so long that the next deadlines are missed.
    pub(super) fn may_wait(&self, serves: TierSet, key: &W::Key, rows: u32, now: Instant) -> Option<Instant> {
        if self.policy.max_queue_delay.is_zero() {
            return None;
        }
        let most = self.most_rows();
        let mut others = self.lanes(serves).flat_map(|lane| lane.others(key));
        if others.any(|(rows, most_rows)| self.policy.is_enough(rows, most.min(most_rows))) {
            return None;
        }
        let waiting = || self.lanes(serves).flat_map(Lane::all);
        let due = waiting().map(Waiting::arrived).min()? + self.policy.max_queue_delay;
        let own =
            self.lanes(serves).filter_map(|lane| lane.deadline_of(key, self.policy.max_batch_size)).min();
        let of_others = waiting().filter(|other| other.key() != key).filter_map(Waiting::deadline);
        let of_others = of_others.filter(|&deadline| deadline > now).min();
        // Averages, hence the half more. The others' batch, which comes after this one, is as long as any. And the way back to the caller.
        let took = |rows| self.costs.estimate(rows).mul_f64(1.5);
        let own = own.and_then(|deadline| deadline.checked_sub(took(rows) + WAY_BACK));
        let of_others =
            of_others.and_then(|deadline| deadline.checked_sub(took(rows) + took(most) + WAY_BACK));
        let due = own.into_iter().chain(of_others).fold(due, Instant::min);
        (due > now).then_some(due)
    }
}
