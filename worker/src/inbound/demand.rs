//! How much of a queue this worker takes ahead, and whether before others. Plain code.
//!
//! What one worker hoards others cannot run: it takes what its instances run in a short time, by what they have run lately, or while
//! its replies await their confirms, where that takes longer: what has run fills the window until it is acknowledged. A queue's
//! messages are dealt in turn to all who have room, so a worker that is several times slower than another stands back: it is served
//! when that one has its fill.
//!
//! Where a tier has shards, each has a part of the window: one tenant's backlog fills its own part only.

use millrace_common::amqp::consumer::Demand;

use crate::schedule::scheduler::Pace;

/// The mean of rows a request goes over about so many requests.
const REQUESTS: f64 = 100.0;
/// Weight of a look's confirms, and how many times what they took before, or the usual window, they count at most: a disk that stands
/// still once, or a broker that was away, changes nothing.
const CONFIRMS: f64 = 0.2;
const MOST_CONFIRMS: f64 = 4.0;
/// Prefetch follows what is wanted when it differs by more than this.
const TOLERANCE: f64 = 0.25;
/// Looks between two changes, for consuming anew has its price.
const APART: u32 = 10;
/// Looks in a row that must agree on another priority.
const AGREEING: u32 = 3;
/// A worker stands back one step for each time that it is slower by this. Little slower ones help: behind a fast one they would
/// have work only when that one's window is full, and its requests would wait for all of it.
const STEP: f64 = 4.0;
/// To come forward again it must be faster than the step by this.
const MARGIN: f64 = 0.75;
/// The shards' windows together may hold the batches and the work of so many times the time that one queue's may.
const SHARDS_WAIT: u16 = 4;
/// The lowest priority.
const LOWEST: i32 = 10;

/// What is served of a route's requests, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Instances that run them.
    pub instances: u64,
    /// How fast one is.
    pub pace: Pace,
}

/// What became of a route's requests since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Lately {
    /// Requests served.
    pub requests: u64,
    /// Their rows.
    pub rows: u64,
    /// At how many times slower than another this worker is.
    pub slowness: f64,
    /// Microseconds that the worker's replies took to be confirmed, where any were.
    pub confirm_us: Option<u64>,
}

/// Bounds on what is taken ahead.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests beyond the instances' batches, at most.
    pub extra: u16,
    /// The time whose work they are, at most, microseconds, unless confirms take longer.
    pub wait_us: u64,
    /// Queues that it is all asked of, alike.
    pub shards: u16,
}

/// What one route asks of the broker, of each of its queues.
#[derive(Debug)]
pub struct Tuner {
    bounds: Bounds,
    /// Rows a request, of late.
    mean_rows: f64,
    /// Microseconds that replies take to be confirmed, of late.
    confirm_us: f64,
    demand: Demand,
    leaning: (i16, u32),
    /// Looks since the last change.
    since: u32,
}

impl Tuner {
    /// A route of which nothing is known but what the warm-up showed.
    pub fn new(bounds: Bounds, loads: impl Iterator<Item = Load>) -> Self {
        let demand = Demand { prefetch: 1, priority: 0 };
        // The first change may come at once.
        let mut tuner =
            Self { bounds, mean_rows: 1.0, confirm_us: 0.0, demand, leaning: (0, 0), since: APART };
        tuner.demand.prefetch = tuner.prefetch(loads);
        tuner
    }

    /// What is asked now.
    pub fn demand(&self) -> Demand {
        self.demand
    }

    /// Looks at what was served since the last look. Returns what to ask instead, where that is another thing.
    ///
    /// Where nothing was served nothing changes: there is nothing to win, and consuming anew may fail on a queue that has no
    /// leader at the moment, where a consumer that stays waits in peace.
    pub fn look(&mut self, loads: impl Iterator<Item = Load>, lately: Lately) -> Option<Demand> {
        self.since = self.since.saturating_add(1);
        if let Some(confirm_us) = lately.confirm_us {
            let most = MOST_CONFIRMS * self.wait_us();
            self.confirm_us += CONFIRMS * ((confirm_us as f64).min(most) - self.confirm_us);
        }
        if lately.requests == 0 {
            return None;
        }
        let (requests, rows) = (lately.requests as f64, lately.rows as f64);
        self.mean_rows += requests / (requests + REQUESTS) * (rows / requests - self.mean_rows);
        let priority = priority(lately.slowness, self.demand.priority);
        self.leaning =
            if self.leaning.0 == priority { (priority, self.leaning.1 + 1) } else { (priority, 1) };
        if self.since < APART {
            return None;
        }
        let before = self.demand;
        let wanted = self.prefetch(loads);
        if (f64::from(wanted) / f64::from(before.prefetch) - 1.0).abs() > TOLERANCE {
            self.demand.prefetch = wanted;
        }
        if self.leaning.1 >= AGREEING {
            self.demand.priority = priority;
        }
        if self.demand == before {
            return None;
        }
        self.since = 0;
        Some(self.demand)
    }

    fn wait_us(&self) -> f64 {
        self.confirm_us.max(self.bounds.wait_us as f64)
    }

    /// One batch running and one forming for each instance, and what they run while acknowledgements are on their way.
    ///
    /// Of that each shard has its part, but the batches at least, while those of all shards are not too long: one busy shard alone can
    /// still fill them, and when many are busy more is fetched than without shards. With one batch only, a lone tenant in one of
    /// eight shards was served 0.6 of what it was without shards (2026-11).
    fn prefetch(&self, loads: impl Iterator<Item = Load>) -> u16 {
        let rows = self.mean_rows.max(1.0);
        let wait_us = self.wait_us();
        let (mut all_batches, mut all_meanwhile, mut too_long) = (0.0, 0.0, 0.0);
        for Load { instances, pace } in loads {
            let batches = f64::from(pace.most_rows) * (instances + 1) as f64 / rows;
            // At least one to run and one to follow, however large they are.
            all_batches += batches.max((instances + 1) as f64).ceil();
            let a_request_us = pace.row_us.map(|row_us| row_us.max(1) as f64 * rows);
            let meanwhile = a_request_us.map_or(0.0, |us| wait_us * instances as f64 / us);
            all_meanwhile += meanwhile.min(self.bounds.extra.into()).floor();
            too_long += meanwhile * f64::from(SHARDS_WAIT);
        }
        let shards = f64::from(self.bounds.shards);
        let part = (all_batches + all_meanwhile) / shards;
        let least = all_batches.min((all_batches + too_long) / shards);
        part.max(least).ceil().clamp(1.0, f64::from(u16::MAX)) as u16
    }
}

/// The priority of a worker that is so many times slower than another, and has had the priority `before`.
fn priority(slowness: f64, before: i16) -> i16 {
    let steps =
        |slowness: f64| -((1..=LOWEST).take_while(|&step| slowness >= STEP.powi(step)).count() as i16);
    let now = steps(slowness);
    // On the way up a little more is asked.
    if now > before { steps(slowness / MARGIN).max(before) } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { extra: 256, wait_us: 250_000, shards: 1 };

    fn load(most_rows: u32, row_us: u64) -> impl Iterator<Item = Load> {
        std::iter::once(Load { instances: 1, pace: Pace { most_rows, row_us: Some(row_us) } })
    }

    fn served(requests: u64, rows: u64) -> Lately {
        Lately { requests, rows, slowness: 1.0, confirm_us: None }
    }

    #[test]
    fn a_slow_model_is_not_hoarded_and_a_fast_one_not_starved() {
        let prefetch = |most_rows, row_us| Tuner::new(BOUNDS, load(most_rows, row_us)).demand().prefetch;
        assert_eq!(prefetch(64, 1), 2 * 64 + 256);
        assert_eq!(prefetch(64, 300), 2 * 64 + 256);
        assert_eq!(prefetch(4, 25_000), 2 * 4 + 10);
        assert_eq!(prefetch(1, 2_000_000), 2);
        let unknown = Load { instances: 2, pace: Pace { most_rows: 64, row_us: None } };
        assert_eq!(Tuner::new(BOUNDS, std::iter::once(unknown)).demand().prefetch, 192);
    }

    #[test]
    fn shards_split_the_window_down_to_the_batches() {
        let prefetch = |shards, most_rows, row_us| {
            Tuner::new(Bounds { shards, ..BOUNDS }, load(most_rows, row_us)).demand().prefetch
        };
        for (most_rows, row_us) in [(64, 1), (4, 25_000), (1, 2_000_000), (1, 1)] {
            let (whole, batches) = (prefetch(1, most_rows, row_us), 2 * most_rows as u16);
            for shards in 1..=64 {
                let part = prefetch(shards, most_rows, row_us);
                assert!(part >= whole.div_ceil(shards), "{shards} shards of {whole}: {part}");
                assert!(part <= whole.div_ceil(shards).max(batches), "{shards} shards of {whole}: {part}");
                // Batches, and a second's work.
                let most = u64::from(batches) + 1_000_000 / row_us + u64::from(shards);
                assert!(
                    u64::from(part) * u64::from(shards) <= most.max(whole.into()),
                    "{shards} windows of {part}"
                );
            }
        }
        assert_eq!([2, 4, 8].map(|shards| prefetch(shards, 64, 1)), [192, 128, 128]);
        assert_eq!(
            [2, 8, 64].map(|shards| prefetch(shards, 1, 2_000_000)),
            [2, 1, 1],
            "a slow model is not hoarded"
        );
    }

    #[test]
    fn requests_of_many_rows_are_counted_as_such() {
        let mut tuner = Tuner::new(BOUNDS, load(64, 300));
        for _ in 0..60 {
            tuner.look(load(64, 300), served(1_000, 64_000));
        }
        let prefetch = tuner.demand().prefetch;
        assert!((12..=20).contains(&prefetch), "{prefetch}");
        for _ in 0..60 {
            assert_eq!(tuner.look(load(64, 310), served(1_000, 64_000)), None, "no change for little");
        }
        tuner.look(load(64, 300), served(1, 1));
        assert!(tuner.mean_rows > 60.0, "one request says little: {}", tuner.mean_rows);
    }

    #[test]
    fn a_slow_disk_does_not_empty_the_lanes() {
        let mut tuner = Tuner::new(BOUNDS, load(4, 25_000));
        let mut looks = |confirm_us, count: usize| {
            let lately = Lately { confirm_us, ..served(40, 40) };
            (0..count)
                .filter_map(|_| tuner.look(load(4, 25_000), lately))
                .last()
                .map(|demand| demand.prefetch)
        };
        assert_eq!(looks(Some(200_000), 60), None, "the usual window covers it");
        assert_eq!((looks(Some(1_000_000), 1), looks(Some(20_000), 20)), (None, None), "one such second");
        assert_eq!((looks(Some(30_000_000), 1), looks(Some(20_000), 20)), (None, None), "a broker was away");
        let window = looks(Some(2_000_000), 60);
        assert!(window.is_some_and(|window| (2 * 4 + 60..=2 * 4 + 80).contains(&window)), "{window:?}");
        assert_eq!(looks(None, 20), None, "without replies nothing is known");
        assert_eq!(looks(Some(20_000), 60), Some(2 * 4 + 10));
        let most = looks(Some(60_000_000), 60);
        assert_eq!(most, Some(2 * 4 + 256), "it has a bound");
    }

    #[test]
    fn a_slow_worker_stands_back_once_that_is_sure() {
        let mut tuner = Tuner::new(BOUNDS, load(4, 25_000));
        let mut looks = |requests, slowness: f64, count: usize| {
            let lately = Lately { slowness, ..served(requests, requests) };
            let look = |_| tuner.look(load(4, 25_000), lately);
            (0..count).filter_map(look).map(|demand| demand.priority).collect::<Vec<_>>()
        };
        assert!(looks(1, 3.0, 20).is_empty(), "a little slower still helps");
        assert!(looks(0, 10.0, 20).is_empty(), "nothing changes where nothing is served");
        assert!(looks(1, 10.0, 2).is_empty());
        assert!(looks(1, 1.0, 1).is_empty());
        assert_eq!(looks(1, 10.0, 20), [-1]);
        assert!(looks(1, 3.5, 20).is_empty(), "nearly as slow");
        assert_eq!(looks(1, 1.0, 20), [0]);
    }

    #[test]
    fn priorities_go_by_steps() {
        let first = [1.0, 3.9, 4.0, 15.0, 16.0, f64::MAX].map(|slowness| priority(slowness, 0));
        assert_eq!(first, [0, 0, -1, -1, -2, -10]);
        assert_eq!([3.5, 2.9].map(|slowness| priority(slowness, -1)), [-1, 0]);
        assert_eq!(priority(f64::NAN, 0), 0);
    }
}
