//! How much of a queue this worker takes ahead, and whether before others. Plain code.
//!
//! What one worker hoards others cannot run: it takes what its instances run in a short time, by what they have run lately. A
//! queue's messages are dealt in turn to all who have room, so a worker that is much slower than the fastest stands back: it is
//! served when that one has its fill.

use millrace_common::amqp::consumer::Demand;

use crate::schedule::scheduler::Pace;

/// Weight of the last look in the mean of rows a request.
const WEIGHT: f64 = 0.3;
/// Prefetch follows what is wanted when it differs by more than this.
const TOLERANCE: f64 = 0.25;
/// Looks in a row that must agree on another priority.
const AGREEING: u32 = 3;
/// The lowest priority: a thousand times slower than the fastest.
const LOWEST: i16 = -10;

/// What is served of a route's requests, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Instances that run them.
    pub instances: u64,
    /// How fast one is.
    pub pace: Pace,
}

/// Bounds on what is taken ahead.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests beyond the instances' batches, at most.
    pub extra: u16,
    /// The time whose work they are, at most, microseconds.
    pub wait_us: u64,
}

/// What one route asks of the broker.
#[derive(Debug)]
pub struct Tuner {
    bounds: Bounds,
    /// Rows a request, of late.
    mean_rows: f64,
    demand: Demand,
    leaning: (i16, u32),
}

impl Tuner {
    /// A route of which nothing is known but what the warm-up showed.
    pub fn new(bounds: Bounds, loads: impl Iterator<Item = Load>) -> Self {
        let mut tuner =
            Self { bounds, mean_rows: 1.0, demand: Demand { prefetch: 1, priority: 0 }, leaning: (0, 0) };
        tuner.demand.prefetch = tuner.prefetch(loads);
        tuner
    }

    /// What is asked now.
    pub fn demand(&self) -> Demand {
        self.demand
    }

    /// Looks at what was served since the last look, and at the speed (rows a second) of this worker and of the fastest one.
    /// Returns what to ask instead, where that is another thing.
    pub fn look(
        &mut self,
        loads: impl Iterator<Item = Load>,
        (requests, rows): (u64, u64),
        (own, fastest): (Option<f64>, Option<f64>),
    ) -> Option<Demand> {
        if requests > 0 {
            self.mean_rows += WEIGHT * (rows as f64 / requests as f64 - self.mean_rows);
        }
        let before = self.demand;
        let wanted = self.prefetch(loads);
        if (f64::from(wanted) / f64::from(before.prefetch) - 1.0).abs() > TOLERANCE {
            self.demand.prefetch = wanted;
        }
        let priority = own.zip(fastest).map_or(0, |(own, fastest)| priority(own, fastest));
        self.leaning =
            if self.leaning.0 == priority { (priority, self.leaning.1 + 1) } else { (priority, 1) };
        if self.leaning.1 >= AGREEING {
            self.demand.priority = priority;
        }
        (self.demand != before).then_some(self.demand)
    }

    /// One batch running and one forming for each instance, and what they run while acknowledgements are on their way.
    fn prefetch(&self, loads: impl Iterator<Item = Load>) -> u16 {
        let rows = self.mean_rows.max(1.0);
        let wanted = loads.map(|Load { instances, pace }| {
            let batches = f64::from(pace.most_rows) * (instances + 1) as f64 / rows;
            let a_request_us = pace.row_us.map(|row_us| row_us.max(1) as f64 * rows);
            let meanwhile = a_request_us.map_or(0.0, |us| (self.bounds.wait_us * instances) as f64 / us);
            // At least one to run and one to follow, however large they are.
            batches.max((instances + 1) as f64).ceil() + meanwhile.min(self.bounds.extra.into()).floor()
        });
        wanted.sum::<f64>().clamp(1.0, f64::from(u16::MAX)) as u16
    }
}

/// One step down for each time that the fastest is twice as fast.
fn priority(own: f64, fastest: f64) -> i16 {
    let halvings = (fastest / own.max(f64::MIN_POSITIVE)).log2().floor();
    -(halvings.clamp(0.0, f64::from(-LOWEST)) as i16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { extra: 256, wait_us: 250_000 };

    fn load(most_rows: u32, row_us: u64) -> impl Iterator<Item = Load> {
        std::iter::once(Load { instances: 1, pace: Pace { most_rows, row_us: Some(row_us) } })
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
    fn requests_of_many_rows_are_counted_as_such() {
        let mut tuner = Tuner::new(BOUNDS, load(64, 300));
        for _ in 0..20 {
            tuner.look(load(64, 300), (100, 6_400), (None, None));
        }
        let prefetch = tuner.demand().prefetch;
        assert!((12..=20).contains(&prefetch), "{prefetch}");
        assert_eq!(tuner.look(load(64, 310), (100, 6_400), (None, None)), None, "no change for little");
    }

    #[test]
    fn a_slow_worker_stands_back_once_that_is_sure() {
        let mut tuner = Tuner::new(BOUNDS, load(4, 25_000));
        let mut look =
            |own, fastest| tuner.look(load(4, 25_000), (0, 0), (own, fastest)).map(|demand| demand.priority);
        assert_eq!(look(Some(10.0), Some(100.0)), None);
        assert_eq!(look(Some(90.0), Some(100.0)), None);
        assert_eq!(look(Some(10.0), Some(100.0)), None);
        assert_eq!(look(Some(10.0), Some(100.0)), None);
        assert_eq!(look(Some(10.0), Some(100.0)), Some(-3));
        assert_eq!(look(Some(10.0), Some(100.0)), None);
        for _ in 0..2 {
            assert_eq!(look(None, None), None);
        }
        assert_eq!(look(None, None), Some(0), "alone, it is the fastest");
        assert_eq!(priority(1.0, 1.9), 0);
        assert_eq!(priority(0.0, 1.0), LOWEST);
    }
}
