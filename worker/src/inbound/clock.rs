//! How far requesters' clocks are from ours. Plain code; `now` is a parameter.
//!
//! The least time that a requester's messages seem to have been on their way, of late, is the distance of the clocks and the least
//! time that the way takes. It is believed only of messages that the broker, by its own clock, would have dropped before they came,
//! and of those that seem to come from the future. Where it may be the way alone, the clocks are taken as equal; and the least that
//! the way took from anybody of those is taken off what is thought to be the distance of the others' clocks.
//!
//! Requesters tell whole milliseconds, rounded down, and ours counts microseconds: a message of a requester whose clock is taken as equal
//! counts as up to a millisecond longer on its way than it was. One of another may count as less or more, by how much farther away or
//! nearer it is than the nearest of those: by 10 ms at most.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What was least longer ago than twice this is forgotten: clocks drift, and are set.
const WINDOW: Duration = Duration::from_secs(30);
/// Requesters remembered, at most; those beyond are taken at their word.
const MOST: usize = 10_000;
/// A requester publishes in order, and the broker drops what waits too long. A message that seems to have been published so much
/// longer before another than that shows a clock that was set back. (What it has waited shows nothing: in a requester
/// that sends more than the broker takes, messages wait for long before the broker's time for them begins.)
const SET_US: i64 = 1_000_000;
/// The way alone may take that long (3 to 10 ms were seen where the broker's disk was slow), and clocks that are kept in step differ by less.
const WAY_US: i64 = 10_000;

/// The clocks of those who sent something of late, by reply key.
#[derive(Debug)]
pub struct Clocks {
    /// Ours, which nobody sets: some instant, and the time since the epoch at it.
    anchor: (Instant, Duration),
    seen: HashMap<String, Seen>,
    /// What messages seem to take whose clocks may be equal to ours.
    way: Option<Least>,
    /// When old ones were last looked for.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    least: Least,
    /// When the latest was published, by its clock.
    latest: i64,
}

/// The least of late, in microseconds: of this window and of the one before.
#[derive(Debug)]
struct Least {
    this: i64,
    before: i64,
    since: Instant,
}

impl Least {
    fn of(value: i64, now: Instant) -> Self {
        Self { this: value, before: value, since: now }
    }

    fn add(&mut self, value: i64, now: Instant) {
        if self.is_old(now) {
            *self = Self::of(value, now);
        } else if now.saturating_duration_since(self.since) >= WINDOW {
            (self.before, self.this, self.since) = (self.this, value, now);
        }
        self.this = self.this.min(value);
    }

    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= 2 * WINDOW
    }

    fn get(&self) -> i64 {
        self.this.min(self.before)
    }
}

impl Clocks {
    /// Nobody is known; our clock says `since_epoch` at `now`.
    pub fn new(now: Instant, since_epoch: Duration) -> Self {
        Self { anchor: (now, since_epoch), seen: HashMap::new(), way: None, swept: None }
    }

    /// How long a message had waited at `now`, when it came, that was published at `published_ms` by the requester's clock, and that
    /// the broker would have dropped after `most`.
    pub fn waited(&mut self, requester: &str, published_ms: u64, most: Duration, now: Instant) -> Duration {
        let (anchor, since_epoch) = self.anchor;
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let received = micros(since_epoch.saturating_add(now.saturating_duration_since(anchor)));
        let (published, most) = (micros(Duration::from_millis(published_ms)), micros(most));
        let seems = received.saturating_sub(published);
        let least = self.least(requester, (published, seems), most, now).unwrap_or(seems);
        let is_in_step = (0..=WAY_US).contains(&least);
        if is_in_step {
            self.way.get_or_insert_with(|| Least::of(least, now)).add(least, now);
        }
        let is_believed = least < 0 || (least > WAY_US.min(most) && seems >= most);
        let way = self.way.as_ref().filter(|way| !is_in_step && !way.is_old(now)).map_or(0, Least::get);
        let distance = if is_believed { least.saturating_sub(way) } else { 0 };
        Duration::from_micros(seems.saturating_sub(distance).try_into().unwrap_or(0))
    }

    fn least(
        &mut self,
        requester: &str,
        (published, seems): (i64, i64),
        most: i64,
        now: Instant,
    ) -> Option<i64> {
        let Some(seen) = self.seen.get_mut(requester) else {
            let is_due = |swept: Instant| now.saturating_duration_since(swept) >= WINDOW;
            if self.seen.len() >= MOST && self.swept.is_none_or(is_due) {
                self.swept = Some(now);
                self.seen.retain(|_, seen| !seen.least.is_old(now));
            }
            if self.seen.len() < MOST {
                let seen = Seen { least: Least::of(seems, now), latest: published };
                self.seen.insert(requester.to_owned(), seen);
            }
            return None;
        };
        let is_set_back = published.saturating_add(most).saturating_add(SET_US) <= seen.latest;
        if is_set_back || seen.least.is_old(now) {
            *seen = Seen { least: Least::of(seems, now), latest: published };
        }
        seen.least.add(seems, now);
        seen.latest = seen.latest.max(published);
        Some(seen.least.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(500);
    /// Our clock when a test begins.
    const NOW: u64 = 1_000_000_000;

    fn clocks() -> (Clocks, Instant) {
        let now = Instant::now();
        (Clocks::new(now, Duration::from_millis(NOW)), now)
    }

    /// Messages that waited so many milliseconds, by a clock that is `skew` ahead of ours, and what is thought of them.
    fn thought(skew: i64, waits: &[u64]) -> Vec<u64> {
        let (mut clocks, now) = clocks();
        let waited = waits.iter().enumerate().map(|(number, wait)| {
            let received = NOW + number as u64;
            let published = (received - wait).checked_add_signed(skew).unwrap();
            let now = now + Duration::from_millis(number as u64);
            clocks.waited("ann.key", published, BUDGET, now).as_millis() as u64
        });
        waited.collect()
    }

    #[test]
    fn equal_clocks_are_believed() {
        assert_eq!(thought(0, &[400, 1, 499, 520, 3]), [400, 1, 499, 520, 3]);
        assert_eq!(thought(200, &[400, 1, 300]), [200, 0, 299], "as far as they are known");
    }

    #[test]
    fn whoever_sends_more_than_the_broker_takes_is_late_indeed() {
        let (mut clocks, now) = clocks();
        let mut waited = |published: u64, wait: u64| {
            let now = now + Duration::from_millis(published + wait);
            clocks.waited("ann.key", NOW + published, BUDGET, now).as_millis()
        };
        assert_eq!([waited(0, 1), waited(10, 2_000), waited(20, 2_600)], [1, 2_000, 2_600]);
    }

    #[test]
    fn in_step_nobody_counts_as_having_waited_less_than_was_waited() {
        let (mut clocks, now) = clocks();
        let mut waited = |published_us: u64, received_us: u64| {
            let now = now + Duration::from_micros(received_us);
            clocks.waited("ann.key", NOW + published_us / 1_000, BUDGET, now).as_micros()
        };
        assert_eq!([waited(1_900, 2_100), waited(7_999, 8_000), waited(9_000, 9_999)], [1_100, 1_000, 999]);
        assert_eq!(waited(10_999, 510_998), 500_998, "the budget is spent");
    }

    #[test]
    fn clocks_far_apart_expire_nothing_and_keep_deadlines() {
        for skew in [300_000, -300_000] {
            assert_eq!(thought(skew, &[5, 3, 450, 503, 3]), [0, 0, 447, 500, 0], "{skew}");
        }
    }

    #[test]
    fn the_way_of_those_in_step_is_not_taken_for_distance() {
        for skew in [300_000, -300_000] {
            let (mut clocks, now) = clocks();
            let mut waited = |requester, skew: i64, wait: u64| {
                let published = (NOW - wait).checked_add_signed(skew).unwrap();
                clocks.waited(requester, published, BUDGET, now).as_millis()
            };
            assert_eq!([waited("ann.key", 0, 9), waited("bob.key", 0, 3)], [9, 3]);
            assert_eq!([waited("eve.key", skew, 4), waited("eve.key", skew, 450)], [3, 449], "{skew}");
        }
    }

    #[test]
    fn a_budget_shorter_than_the_way_of_a_clock_in_step_is_kept() {
        let (mut clocks, now) = clocks();
        let budget = Duration::from_millis(5);
        let mut waited = |at: u64| {
            let now = now + Duration::from_millis(at);
            clocks.waited("ann.key", NOW + at - 8, budget, now).as_millis()
        };
        assert_eq!([waited(0), waited(10)], [0, 0], "8 ms behind");
    }

    #[test]
    fn a_way_of_long_ago_is_forgotten() {
        let (mut clocks, now) = clocks();
        clocks.waited("ann.key", NOW - 9, BUDGET, now);
        let later = now + 2 * WINDOW;
        assert_eq!(clocks.waited("eve.key", NOW + 400_000, BUDGET, later), Duration::ZERO);
    }

    #[test]
    fn clocks_less_far_apart_expire_nothing_either() {
        assert_eq!(thought(-400, &[5, 150, 90]), [405, 145, 490]);
    }

    #[test]
    fn a_clock_that_is_set_is_noticed() {
        let (mut clocks, now) = clocks();
        let mut waited = |published, at: u64| {
            clocks.waited("ann.key", published, BUDGET, now + Duration::from_millis(at)).as_millis()
        };
        assert_eq!([waited(NOW, 2), waited(NOW + 10, 20)], [2, 10]);
        assert_eq!(waited(NOW - 60_000, 30), 2, "a minute back; the way took 2 ms once");
        assert_eq!(waited(NOW - 60_000 + 10, 140), 102);
        assert_eq!(waited(NOW + 70_000, 150), 2, "and forth");
        assert_eq!(waited(NOW + 160, 160), 0, "and back");
        assert_eq!(waited(NOW + 170, 190), 20);
    }

    #[test]
    fn made_up_names_do_not_fill_memory() {
        let (mut clocks, now) = clocks();
        for name in 0..2 * MOST {
            clocks.waited(&name.to_string(), NOW, BUDGET, now);
        }
        assert_eq!(clocks.seen.len(), MOST);
        clocks.waited("later", NOW, BUDGET, now + 3 * WINDOW);
        assert_eq!(clocks.seen.len(), 1);
    }
}
