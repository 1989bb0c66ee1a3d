//! What a batch costs: the time it takes, learned from the batches that ran, by size. Plain code.

use std::time::Duration;

/// Sizes are gathered by powers of two; the last holds everything larger.
const BUCKETS: usize = 17;
/// Weight of a new measurement. A bucket follows a change within about ten batches.
const WEIGHT: f64 = 0.2;
/// A batch that took longer than this many times what its size usually takes counts as that: its core was taken away.
const OUTLIER: f64 = 4.0;
/// What a batch more leaves of the measurements before it, where every moment counts: a core that is taken away every now and then,
/// as by a quota, is missing all the same.
const KEEP: f64 = 0.98;
/// A batch that took longer than this many times the mean counts as that: what happens once says little of a machine.
const ONCE: f64 = 50.0;
/// How far larger sizes follow a smaller one that turns out cheaper. A size priced too high once would never run again, and so
/// never be measured again.
const FOLLOW: f64 = 0.02;
/// How much dearer than the cheapest a row may be in a batch that is as large as pays.
const PAYS: f64 = 1.03;
/// Weight of a new measurement in what is usual, once there are many, and how far off it may be to count as it is: sizes are
/// compared by a few hundredths, and what is off by more says little.
const USUAL_WEIGHT: f64 = 0.05;
const USUAL_RANGE: f64 = 0.1;
/// So many batches of a size say little of what is usual: what disturbs a batch makes it longer, so the shortest of them counts.
const FEW: u32 = 5;
/// A batch that takes no longer keeps nobody waiting, while a larger one saves handing over, and replies travel together.
const SHORT: Duration = Duration::from_millis(10);
/// Microseconds a row where nothing has been learned. Only its being equal for all matters.
const UNKNOWN: f64 = 100.0;

/// The time a batch takes, by its rows.
#[derive(Clone, Debug, Default)]
pub struct CostCurve {
    /// Microseconds a row, by size.
    per_row: [Option<f64>; BUCKETS],
    /// Of batches that requests made up, what comes of it: workers are compared by it.
    measured: [Mean; BUCKETS],
    /// Of the same, what is usual: sizes are compared by it.
    usual: [Usual; BUCKETS],
}

/// Microseconds a row that are usual, and of how many batches.
#[derive(Clone, Copy, Debug, Default)]
struct Usual {
    per_row: f64,
    batches: u32,
}

impl Usual {
    fn add(&mut self, measured: f64) {
        self.batches = self.batches.saturating_add(1);
        if self.batches <= FEW {
            self.per_row = if self.batches == 1 { measured } else { measured.min(self.per_row) };
            return;
        }
        let weight = (1.0 / f64::from(self.batches)).max(USUAL_WEIGHT);
        let range = self.per_row * (2.0 * weight).max(USUAL_RANGE);
        self.per_row += weight * (measured - self.per_row).clamp(-range, range);
    }

    fn known(self) -> Option<f64> {
        (self.batches > 0).then_some(self.per_row)
    }
}

/// Time and rows of the batches of late.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    micros: f64,
    rows: f64,
}

impl Mean {
    fn add(&mut self, micros: f64, rows: u32) {
        let most = self.per_row().map_or(f64::MAX, |known| ONCE * known * f64::from(rows));
        self.micros = KEEP * self.micros + micros.min(most);
        self.rows = KEEP * self.rows + f64::from(rows);
    }

    fn per_row(self) -> Option<f64> {
        (self.rows > 0.0).then(|| self.micros / self.rows)
    }
}

fn bucket(rows: u32) -> usize {
    // 1, 2, 3-4, 5-8, ...
    (u32::BITS - rows.saturating_sub(1).leading_zeros()).min(BUCKETS as u32 - 1) as usize
}

impl CostCurve {
    /// Takes a batch of requests that ran.
    pub fn ran(&mut self, rows: u32, busy: Duration) {
        self.learn(rows, busy);
        self.measured[bucket(rows)].add(busy.as_secs_f64() * 1e6, rows);
        self.usual[bucket(rows)].add(a_row(rows, busy));
    }

    /// Takes a batch that ran, the warm-up's too, which is of another content.
    pub fn learn(&mut self, rows: u32, busy: Duration) {
        let measured = a_row(rows, busy);
        follow(&mut self.per_row[bucket(rows)], measured);
        for larger in self.per_row[bucket(rows) + 1..].iter_mut().flatten() {
            *larger += FOLLOW * (measured - *larger).min(0.0);
        }
    }

    /// Whether anything was learned.
    pub fn is_known(&self) -> bool {
        self.per_row.iter().any(Option::is_some)
    }

    /// Microseconds a row in a batch of so many rows, 1 or more: of its size, or of the nearest size known.
    pub fn per_row(&self, rows: u32) -> i64 {
        let wanted = bucket(rows);
        let near = (0..BUCKETS).filter_map(|at| Some((at.abs_diff(wanted), self.per_row[at]?)));
        let found = near.min_by_key(|(distance, _)| *distance).map_or(UNKNOWN, |(_, per_row)| per_row);
        (found.ceil() as i64).max(1)
    }

    /// The time a batch of so many rows takes.
    pub fn estimate(&self, rows: u32) -> Duration {
        let micros = self.per_row(rows).saturating_mul(i64::from(rows));
        Duration::from_micros(micros.unsigned_abs())
    }

    /// The most rows, up to `most`, whose batch takes no longer than `limit`; at least 1. `most` where nothing is known.
    ///
    /// What a single row takes cannot be undercut, and a batch that takes little longer than that is no worse: a model bound
    /// by its weights takes as long for one row as for many.
    pub fn rows_within(&self, limit: Duration, most: u32) -> u32 {
        self.rows_in(limit.max(self.estimate(1) * 5 / 4), most)
    }

    fn rows_in(&self, limit: Duration, most: u32) -> u32 {
        if !self.is_known() || self.estimate(most) <= limit {
            return most;
        }
        let sizes = (0..BUCKETS).map(|at| 1u32 << at).take_while(|&rows| rows < most);
        let largest = sizes.filter(|&rows| self.estimate(rows) <= limit).last();
        let Some(largest) = largest else { return 1 };
        // Between this size and the next the larger one's price holds.
        let per_row = self.per_row(largest + 1).unsigned_abs();
        let within = u32::try_from(limit.as_micros() / u128::from(per_row)).unwrap_or(u32::MAX);
        within.clamp(largest, most)
    }

    /// The fewest rows, up to `most`, in whose batch a row costs hardly more than in the cheapest, or whose batch is short. `most`
    /// where requests have made up no such batch and a row was cheapest in the largest that they have.
    ///
    /// A convolution net costs the same a row in any batch: whoever shares one waits for the others and gains nothing.
    pub fn rows_that_pay(&self, most: u32) -> u32 {
        let top = bucket(most);
        let known = || (0..=top).filter_map(|at| Some((at, self.usual[at].known()?)));
        let least = known().map(|(_, per_row)| per_row).fold(f64::INFINITY, f64::min);
        let (Some((pays, _)), Some((largest, _))) =
            (known().find(|&(_, per_row)| per_row <= PAYS * least), known().next_back())
        else {
            return most;
        };
        if pays == largest && largest < top {
            return most;
        }
        (1u32 << pays).max(self.rows_in(SHORT, most)).min(most)
    }

    /// Whether a batch of so many rows is over before anybody minds.
    pub fn is_short(&self, rows: u32) -> bool {
        self.estimate(rows) <= SHORT
    }

    /// Whether so few batches of requests of so many rows have run that they say little of what is usual.
    pub fn is_new(&self, rows: u32) -> bool {
        self.usual[bucket(rows)].batches < FEW
    }

    /// What is known: rows (the largest of their size) and microseconds of a batch of so many.
    pub fn known(&self) -> Vec<(u32, u64)> {
        by_size(self.per_row)
    }

    /// What batches of requests taught: rows (the largest of their size) and microseconds of a batch of so many.
    pub fn measured(&self) -> Vec<(u32, u64)> {
        by_size(self.measured.map(Mean::per_row))
    }
}

fn a_row(rows: u32, busy: Duration) -> f64 {
    busy.as_secs_f64() * 1e6 / f64::from(rows.max(1))
}

fn follow(known: &mut Option<f64>, measured: f64) {
    *known = Some(match *known {
        None => measured,
        Some(known) => known + WEIGHT * (measured.min(known * OUTLIER) - known),
    });
}

fn by_size(per_row: [Option<f64>; BUCKETS]) -> Vec<(u32, u64)> {
    let known = per_row.into_iter().enumerate().filter_map(|(at, per_row)| Some((at, per_row?)));
    known.map(|(at, per_row)| (1u32 << at, (per_row * f64::from(1u32 << at)) as u64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(costs: &[(u32, u64)]) -> CostCurve {
        let mut curve = CostCurve::default();
        for &(rows, micros) in costs {
            curve.learn(rows, Duration::from_micros(micros));
        }
        curve
    }

    #[test]
    fn sizes_are_gathered_by_powers_of_two() {
        assert_eq!([1, 2, 3, 4, 5, 8, 9, 64, 65].map(bucket), [0, 1, 2, 2, 3, 3, 4, 6, 7]);
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_nearest_size_speaks_for_unknown_ones() {
        let curve = learned(&[(1, 1_000), (64, 3_200)]);
        assert_eq!([1, 2, 64, 128].map(|rows| curve.per_row(rows)), [1_000, 1_000, 50, 50]);
        assert_eq!(curve.estimate(64), Duration::from_micros(3_200));
        assert_eq!(curve.known(), [(1, 1_000), (64, 3_200)]);
    }

    #[test]
    fn it_follows_a_change_and_forgives_a_stolen_core() {
        let mut curve = learned(&[(4, 400)]);
        curve.learn(4, Duration::from_secs(10));
        assert_eq!(curve.per_row(4), 160);
        for _ in 0..30 {
            curve.learn(4, Duration::from_micros(800));
        }
        assert_eq!(curve.per_row(4), 200);
    }

    #[test]
    fn workers_are_compared_by_all_their_time() {
        let mut curve = CostCurve::default();
        for batch in 0..400 {
            // Nine tenths of the time it stands still, at every fifth batch.
            curve.ran(4, Duration::from_micros(if batch % 5 == 0 { 18_400 } else { 400 }));
        }
        let [(4, micros)] = curve.measured()[..] else { panic!("one size ran") };
        assert!((3_600..4_400).contains(&micros), "{micros}");
        assert!(curve.estimate(4) < Duration::from_millis(2), "while a usual batch is short");
    }

    #[test]
    fn a_size_priced_too_high_is_tried_again() {
        let limit = Duration::from_millis(100);
        let mut curve = learned(&[(1, 1_000), (64, 320_000)]);
        let first = curve.rows_within(limit, 64);
        assert!(first < 64);
        for _ in 0..500 {
            let rows = curve.rows_within(limit, 64);
            curve.learn(rows, Duration::from_micros(300) * rows);
        }
        assert_eq!(curve.rows_within(limit, 64), 64);
    }

    #[test]
    fn a_batch_is_no_larger_than_pays() {
        let learned = |costs: &[(u32, u64)]| {
            let mut curve = CostCurve::default();
            costs.iter().for_each(|&(rows, micros)| curve.ran(rows, Duration::from_micros(micros)));
            curve
        };
        assert_eq!(CostCurve::default().rows_that_pay(64), 64);
        // A convolution net: nothing is gained by company, but for what measuring makes of it.
        let heavy = learned(&[(1, 25_200), (2, 50_000), (4, 100_000), (64, 1_600_000)]);
        assert_eq!([64, 4, 3, 1].map(|most| heavy.rows_that_pay(most)), [1, 1, 1, 1]);
        assert_eq!(heavy.rows_that_pay(16), 1, "larger ones have not shown to be cheaper");
        assert_eq!(learned(&[(1, 25_000)]).rows_that_pay(16), 16, "none has shown what it costs");
        // A warm-up whose single row was dear, or cores stolen twice, make no batch short.
        let mut dear = heavy.clone();
        dear.learn(1, Duration::from_millis(100));
        assert_eq!((dear.rows_that_pay(4), dear.is_short(2)), (1, false));
        // Bound by its weights up to 16 rows.
        let bound = learned(&[(1, 20_000), (4, 20_400), (16, 40_000), (64, 160_000)]);
        assert_eq!([64, 50, 16, 4].map(|most| bound.rows_that_pay(most)), [16, 16, 16, 4]);
        // A short batch is handed over as a whole.
        let light = learned(&[(1, 1_000), (64, 64_000)]);
        assert_eq!([64, 4].map(|most| light.rows_that_pay(most)), [10, 4]);
        let tiny = learned(&[(1, 10), (64, 640)]);
        assert_eq!(tiny.rows_that_pay(64), 64);
    }

    #[test]
    fn what_is_usual_does_not_mind_a_stolen_core_and_gets_over_a_bad_beginning() {
        let (mut stolen, mut wrong) = (Usual::default(), Usual::default());
        (0..30).for_each(|_| stolen.add(100.0));
        stolen.add(400.0);
        assert!((stolen.per_row - 100.0).abs() < 1.0, "{}", stolen.per_row);
        wrong.add(130.0);
        (0..4).for_each(|_| wrong.add(100.0));
        assert!((wrong.per_row - 100.0).abs() < 7.0, "{}", wrong.per_row);
        (0..100).for_each(|_| wrong.add(200.0));
        assert!((wrong.per_row - 200.0).abs() < 20.0, "it follows what lasts: {}", wrong.per_row);
    }

    #[test]
    fn a_batch_keeps_to_a_time() {
        let limit = Duration::from_millis(100);
        assert_eq!(CostCurve::default().rows_within(limit, 64), 64);
        // 25 ms an item at any size, as a convolution net.
        let heavy = learned(&[(1, 25_000), (4, 100_000), (64, 1_600_000)]);
        assert_eq!(heavy.rows_within(limit, 64), 4);
        assert_eq!(heavy.rows_within(Duration::from_millis(10), 64), 1);
        let light = learned(&[(1, 1_000), (64, 40_000)]);
        assert_eq!(light.rows_within(limit, 64), 64);
        let bound_by_weights = learned(&[(1, 500_000), (64, 520_000)]);
        assert_eq!(bound_by_weights.rows_within(limit, 64), 64);
        let between = learned(&[(1, 1_000), (32, 32_000), (64, 64_000)]);
        assert_eq!(between.rows_within(Duration::from_millis(50), 64), 50);
    }
}
