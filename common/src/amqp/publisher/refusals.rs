//! Queues that take nothing, and whether another channel would find them otherwise. Plain data; `now` is a parameter.
//!
//! A full queue refuses, and so does one without a leader in its cluster. RabbitMQ 3.10 goes on refusing after there is a new leader
//! where the channel first published while there was none: it asks the one that it met then, until that node is back
//! (`rabbit_fifo_client`, `enqueue`). Another channel meets the new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;
use tracing::debug;

/// How long a queue refuses everything before another channel is tried; doubled each time that it did not help, up to the second.
const PATIENCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(64)];
/// How long the answers that are outstanding hold up another channel, before it is put off: there might be one that never comes.
const DRAINED_WITHIN: Duration = Duration::from_secs(1);
/// A queue that refused and to which nothing was sent for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Where a message goes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) exchange: Arc<str>,
    pub(super) routing_key: ShortString,
}

/// Since when a place has taken nothing, on this channel, and when it refused last.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    since: Instant,
    last: Instant,
}

/// The places that take nothing.
#[derive(Debug)]
pub(super) struct Refusals {
    places: HashMap<Place, Refusal>,
    patience: Duration,
    wanted: Option<Instant>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { places: HashMap::new(), patience: PATIENCE[0], wanted: None }
    }
}

impl Refusals {
    /// A message was taken.
    pub(super) fn taken(&mut self, place: &Place) {
        if !self.places.is_empty() && self.places.remove(place).is_some() && self.places.is_empty() {
            (self.patience, self.wanted) = (PATIENCE[0], None);
        }
    }

    /// A message was refused.
    pub(super) fn refused(&mut self, place: Place, now: Instant) {
        let refusal = self.places.entry(place).or_insert(Refusal { since: now, last: now });
        refusal.last = now;
        if self.wanted.is_none() && now.saturating_duration_since(refusal.since) >= self.patience {
            debug!(patience = ?self.patience, "a queue takes nothing; another channel may find it otherwise");
            self.wanted = Some(now);
        }
    }

    /// Whether nothing should be sent until another channel is there.
    pub(super) fn want_another_channel(&self) -> bool {
        self.wanted.is_some()
    }

    /// There is another channel, or there is none for now.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.wanted = None;
        self.patience = (self.patience * 2).min(PATIENCE[1]);
        self.places.values_mut().for_each(|refusal| refusal.since = now);
    }

    /// Gives up what takes too long; to be called now and then.
    pub(super) fn look(&mut self, now: Instant) {
        let is_over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        self.places.retain(|_, refusal| !is_over(refusal.last, FORGOTTEN_AFTER));
        if self.wanted.is_some_and(|since| is_over(since, DRAINED_WITHIN)) {
            self.begin_anew(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(routing_key: &str) -> Place {
        Place { exchange: "e".into(), routing_key: routing_key.into() }
    }

    /// A clock, and what it sees.
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

        fn refused(&mut self, routing_key: &str, ms: u64) -> bool {
            self.refusals.refused(place(routing_key), self.at(ms));
            self.refusals.want_another_channel()
        }
    }

    #[test]
    fn a_queue_that_takes_nothing_for_long_has_another_channel_tried_ever_more_rarely() {
        let mut case = Case::new();
        assert_eq!([0, 1_000, 1_999].map(|ms| case.refused("a", ms)), [false; 3]);
        assert!(case.refused("a", 2_000));
        case.refusals.begin_anew(case.at(2_000));
        assert_eq!([2_001, 5_999].map(|ms| case.refused("a", ms)), [false; 2]);
        assert!(case.refused("a", 6_000), "twice as long");
        case.refusals.begin_anew(case.at(6_000));
        case.refusals.taken(&place("a"));
        assert_eq!([7_000, 8_999].map(|ms| case.refused("a", ms)), [false; 2]);
        assert!(case.refused("a", 9_000), "it had taken something: as in the beginning");
    }

    #[test]
    fn a_queue_that_takes_some_is_no_case_for_another_channel_and_no_queue_speaks_for_another() {
        let mut case = Case::new();
        for ms in (0..10_000).step_by(500) {
            assert!(!case.refused("full", ms));
            case.refusals.taken(&place("full"));
        }
        assert!(!case.refused("a", 10_000));
        case.refusals.taken(&place("b"));
        assert!(!case.refused("b", 12_000));
        assert!(case.refused("a", 12_000));
    }

    #[test]
    fn an_answer_that_never_comes_holds_up_nothing_for_long() {
        let mut case = Case::new();
        case.refused("a", 0);
        assert!(case.refused("a", 2_000));
        case.refusals.look(case.at(2_900));
        assert!(case.refusals.want_another_channel());
        case.refusals.look(case.at(3_000));
        assert!(!case.refusals.want_another_channel());
    }

    #[test]
    fn what_nobody_sends_to_any_more_is_forgotten() {
        let mut case = Case::new();
        case.refused("a", 0);
        case.refused("b", 30_000);
        case.refusals.look(case.at(60_000));
        assert_eq!(case.refusals.places.len(), 1);
    }
}
