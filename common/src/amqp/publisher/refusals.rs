//! Queues that take nothing from a channel, and when another channel should be tried. Plain data; `now` is a parameter.
//!
//! A full queue refuses, and so does a quorum queue without a leader. RabbitMQ 3.10 goes on refusing after there is a new leader where
//! the channel first published to the queue while there was none: it asks the node that led then, until that is back
//! (`rabbit_fifo_client:enqueue`). Another channel asks the new one. A queue that has taken something from the channel is mostly full.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;
use tracing::debug;

/// How long a queue takes nothing before another channel is tried; doubled for the queue each time that it did not help.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// The most: so long may it take until a new leader is found. It is the patience with a queue that has taken something, too.
const LONGEST_PATIENCE: Duration = Duration::from_secs(16);
/// A queue that has refused nothing for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Most places remembered of each kind.
const MOST: usize = 10_000;

/// Where a message goes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) exchange: Arc<str>,
    pub(super) routing_key: ShortString,
}

#[derive(Debug)]
struct Refusal {
    /// When it first refused on this channel, or another one was tried in vain.
    since: Option<Instant>,
    last: Instant,
    patience: Duration,
}

impl Refusal {
    fn is_due(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.patience)
    }

    /// Another channel is used, or was tried in vain.
    fn tried(&mut self, now: Instant) {
        if self.is_due(now) {
            self.patience = (self.patience * 2).min(LONGEST_PATIENCE);
        }
    }
}

/// What queues have refused, and taken, on a channel.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    refused: HashMap<Place, Refusal>,
    taken: HashSet<Place>,
}

impl Refusals {
    /// A message was taken.
    pub(super) fn taken(&mut self, place: Place) {
        if !self.refused.is_empty() {
            self.refused.remove(&place);
        }
        if self.taken.len() < MOST {
            self.taken.insert(place);
        }
    }

    /// A message was refused.
    pub(super) fn refused(&mut self, place: Place, now: Instant) {
        if self.refused.len() >= MOST && !self.refused.contains_key(&place) {
            return;
        }
        let patience = if self.taken.contains(&place) { LONGEST_PATIENCE } else { FIRST_PATIENCE };
        let begin = || Refusal { since: None, last: now, patience };
        let refusal = self.refused.entry(place).or_insert_with(begin);
        refusal.since.get_or_insert(now);
        refusal.last = now;
    }

    /// Whether another channel should be tried; to be asked now and then.
    pub(super) fn want_another_channel(&mut self, now: Instant) -> bool {
        self.refused.retain(|_, refusal| now.saturating_duration_since(refusal.last) < FORGOTTEN_AFTER);
        self.refused.values().any(|refusal| refusal.is_due(now))
    }

    /// From here on another channel is used.
    pub(super) fn replaced(&mut self, now: Instant) {
        self.taken.clear();
        for (place, refusal) in &mut self.refused {
            if refusal.is_due(now) {
                let Place { exchange, routing_key } = place;
                debug!(%exchange, %routing_key, patience = ?refusal.patience, "took nothing; another channel is used");
            }
            refusal.tried(now);
            refusal.since = None;
        }
    }

    /// There is no other channel for now.
    pub(super) fn put_off(&mut self, now: Instant) {
        debug!(places = self.refused.len(), "some take nothing; another channel could not be used");
        for refusal in self.refused.values_mut().filter(|refusal| refusal.since.is_some()) {
            refusal.tried(now);
            refusal.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(routing_key: &str) -> Place {
        Place { exchange: "e".into(), routing_key: routing_key.into() }
    }

    /// Refusals, and a clock in milliseconds.
    struct Case {
        refusals: Refusals,
        begin: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self { refusals: Refusals::default(), begin: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.begin + Duration::from_millis(ms)
        }

        fn refused(&mut self, routing_key: &str, ms: u64) {
            self.refusals.refused(place(routing_key), self.at(ms));
        }

        fn taken(&mut self, routing_key: &str) {
            self.refusals.taken(place(routing_key));
        }

        fn wants(&mut self, ms: u64) -> bool {
            self.refusals.want_another_channel(self.at(ms))
        }

        fn replaced(&mut self, ms: u64) {
            self.refusals.replaced(self.at(ms));
        }
    }

    #[test]
    fn a_queue_that_takes_nothing_has_another_channel_tried_ever_more_rarely() {
        let mut case = Case::new();
        case.refused("a", 0);
        assert_eq!(
            [1_999, 2_000].map(|ms| case.wants(ms)),
            [false, true],
            "also where it is asked once only"
        );
        case.replaced(2_000);
        assert!(!case.wants(90_000), "nothing was refused on the new one");
        case.refused("a", 90_000);
        assert_eq!([93_999, 94_000].map(|ms| case.wants(ms)), [false, true], "twice as long");
        case.replaced(94_000);
        case.taken("a");
        case.replaced(95_000);
        case.refused("a", 95_000);
        assert_eq!([96_999, 97_000].map(|ms| case.wants(ms)), [false, true], "as in the beginning");
    }

    #[test]
    fn a_queue_that_has_taken_something_has_more_time() {
        let mut case = Case::new();
        case.taken("full");
        case.refused("full", 0);
        assert_eq!([15_999, 16_000].map(|ms| case.wants(ms)), [false, true]);
        // One that takes something now and then needs no other channel.
        for ms in (0..100_000).step_by(10_000) {
            case.refused("full", ms);
            assert!(!case.wants(ms + 9_999));
            case.taken("full");
        }
    }

    #[test]
    fn no_queue_waits_longer_for_another() {
        let mut case = Case::new();
        for ms in [0, 100_000, 200_000, 300_000] {
            case.refused("stuck", ms);
            case.replaced(ms + 50_000);
        }
        case.refused("stuck", 400_000);
        assert_eq!([415_999, 416_000].map(|ms| case.wants(ms)), [false, true]);
        case.refused("a", 400_000);
        assert_eq!([401_999, 402_000].map(|ms| case.wants(ms)), [false, true]);
    }

    #[test]
    fn what_is_put_off_is_tried_again_for_all() {
        let mut case = Case::new();
        case.refused("a", 0);
        case.refused("b", 1_000);
        case.refusals.put_off(case.at(2_000));
        assert_eq!([3_999, 4_000].map(|ms| case.wants(ms)), [false, true], "b's time, from then on");
        case.taken("b");
        assert_eq!([5_999, 6_000].map(|ms| case.wants(ms)), [false, true], "a's, doubled");
    }

    #[test]
    fn made_up_places_do_not_fill_memory() {
        let mut case = Case::new();
        for number in 0..2 * MOST {
            case.taken(&format!("t{number}"));
            case.refused(&format!("r{number}"), 0);
        }
        assert_eq!((case.refusals.taken.len(), case.refusals.refused.len()), (MOST, MOST));
        assert!(!case.wants(300_000));
        assert!(case.refusals.refused.is_empty(), "nobody sends to them any more");
    }
}
