//! How far requesters' clocks are from ours. Plain code; `now` is a parameter.
//!
//! The least time that a requester's messages seem to have been on their way, of late, is the distance of the clocks and the least
//! time that the way takes. It is believed only where it cannot be a wait: below zero, or where the broker, by its own clock,
//! would have dropped the message before it came.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What was least longer ago than twice this is forgotten: clocks drift, and are set.
const WINDOW: Duration = Duration::from_secs(30);
/// Requesters remembered, at most; those beyond are taken at their word.
const MOST: usize = 10_000;
/// A message that seems to be so much later than the broker would have let it be shows a clock that was set.
const SET_MS: i64 = 1_000;

/// The clocks of those who sent something of late, by reply key.
#[derive(Debug, Default)]
pub struct Clocks {
    seen: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Milliseconds: the least of this window and of the one before.
    least: i64,
    before: i64,
    since: Instant,
}

impl Clocks {
    /// How long a message has waited that was published at `published_ms` by the requester's clock and received at `received_ms` by
    /// ours. `dropped_after` is the time after which the broker drops it, where it does.
    pub fn waited(
        &mut self,
        requester: &str,
        (published_ms, received_ms): (u64, u64),
        dropped_after: Option<Duration>,
        now: Instant,
    ) -> Duration {
        let seems =
            i64::try_from(received_ms).unwrap_or(i64::MAX) - i64::try_from(published_ms).unwrap_or(i64::MAX);
        let most =
            dropped_after.map_or(i64::MAX, |after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
        let least = self.least(requester, seems, most, now).unwrap_or(seems);
        let distance = if least < 0 || least >= most { least } else { 0 };
        Duration::from_millis(seems.saturating_sub(distance).try_into().unwrap_or(0))
    }

    fn least(&mut self, requester: &str, seems: i64, most: i64, now: Instant) -> Option<i64> {
        let Some(seen) = self.seen.get_mut(requester) else {
            if self.seen.len() >= MOST {
                self.seen.retain(|_, seen| now.saturating_duration_since(seen.since) < 2 * WINDOW);
            }
            if self.seen.len() < MOST {
                self.seen.insert(requester.to_owned(), Seen { least: seems, before: seems, since: now });
            }
            return None;
        };
        let was_set = seems.saturating_sub(seen.least.min(seen.before)) >= most.saturating_add(SET_MS);
        if was_set {
            (seen.least, seen.before, seen.since) = (seems, seems, now);
        }
        if now.saturating_duration_since(seen.since) >= WINDOW {
            let is_old = now.saturating_duration_since(seen.since) >= 2 * WINDOW;
            seen.before = if is_old { seems } else { seen.least };
            (seen.least, seen.since) = (seems, now);
        }
        seen.least = seen.least.min(seems);
        Some(seen.least.min(seen.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(500);
    /// Our clock.
    const NOW: u64 = 1_000_000_000;

    /// Messages that waited so many milliseconds, by a clock that is `skew` ahead of ours, and what is thought of them.
    fn thought(skew: i64, waits: &[u64]) -> Vec<u64> {
        let (mut clocks, now) = (Clocks::default(), Instant::now());
        let waited = waits.iter().enumerate().map(|(number, wait)| {
            let received = NOW + number as u64;
            let published = (received - wait).checked_add_signed(skew).unwrap();
            let now = now + Duration::from_millis(number as u64);
            clocks.waited("ann.key", (published, received), Some(BUDGET), now).as_millis() as u64
        });
        waited.collect()
    }

    #[test]
    fn equal_clocks_are_believed() {
        assert_eq!(thought(0, &[400, 1, 499, 520, 3]), [400, 1, 499, 520, 3]);
        assert_eq!(thought(200, &[400, 1, 300]), [200, 0, 299], "as far as they are known");
    }

    #[test]
    fn clocks_far_apart_expire_nothing_and_keep_deadlines() {
        for skew in [300_000, -300_000] {
            assert_eq!(thought(skew, &[5, 3, 450, 503, 3]), [0, 0, 447, 500, 0], "{skew}");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_noticed() {
        let (mut clocks, now) = (Clocks::default(), Instant::now());
        let mut waited = |published, at: u64| {
            let now = now + Duration::from_millis(at);
            clocks.waited("ann.key", (published, NOW + at), Some(BUDGET), now).as_millis()
        };
        assert_eq!([waited(NOW, 2), waited(NOW + 10, 20)], [2, 10]);
        assert_eq!(waited(NOW - 60_000, 30), 0, "a minute back");
        assert_eq!(waited(NOW - 60_000 + 10, 140), 100);
        assert_eq!(waited(NOW + 70_000, 150), 0, "and forth");
        assert_eq!(waited(NOW + 160, 160), 0);
    }

    #[test]
    fn without_the_brokers_word_what_seems_late_is_late() {
        let (mut clocks, now) = (Clocks::default(), Instant::now());
        assert_eq!(clocks.waited("k", (NOW, NOW + 60_000), None, now), Duration::from_secs(60));
    }

    #[test]
    fn made_up_names_do_not_fill_memory() {
        let (mut clocks, now) = (Clocks::default(), Instant::now());
        for name in 0..2 * MOST {
            clocks.waited(&name.to_string(), (NOW, NOW), None, now);
        }
        assert_eq!(clocks.seen.len(), MOST);
        clocks.waited("later", (NOW, NOW), None, now + 3 * WINDOW);
        assert_eq!(clocks.seen.len(), 1);
    }
}
