//! Caps: the part of the instances' time that a tier may take, even where nobody else wants it. Plain code; `now` is a parameter.

use std::time::{Duration, Instant};

use super::tier_set::TierSet;

/// The rest that a tier may save up for a burst: what it earns in this time.
const SAVED: Duration = Duration::from_millis(100);

/// What each tier has left of its part. A batch that was begun is finished: what it took too much is rested off.
#[derive(Debug, Default)]
pub struct Caps {
    tiers: Vec<Option<Cap>>,
    refilled: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Cap {
    /// Microseconds of model time earned in a microsecond.
    rate: f64,
    /// Microseconds.
    left: f64,
}

impl Caps {
    /// Caps of these parts, from 0 to 1, of so many instances' time; 1 is none.
    pub fn new(max_shares: impl IntoIterator<Item = f64>, instances: usize) -> Self {
        Self {
            tiers: max_shares.into_iter().map(|share| Cap::new(share, instances)).collect(),
            refilled: None,
        }
    }

    /// Goes on with other parts. What a tier took too much it still rests off.
    pub fn retune(&mut self, max_shares: &[f64], instances: usize) {
        let before = std::mem::take(&mut self.tiers);
        let left = |tier: usize| before.get(tier).copied().flatten().map(|cap| cap.left);
        let caps = max_shares.iter().enumerate().map(|(tier, &share)| {
            let cap = Cap::new(share, instances)?;
            Some(Cap { left: left(tier).map_or(cap.left, |left| left.min(cap.left)), ..cap })
        });
        self.tiers = caps.collect();
    }

    /// The tiers that may take time at `now`.
    pub fn open(&mut self, now: Instant) -> TierSet {
        if self.tiers.iter().all(Option::is_none) {
            return TierSet::ALL;
        }
        let rested = self.refilled.map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        self.refilled = Some(now);
        for cap in self.tiers.iter_mut().flatten() {
            cap.left = (cap.left + cap.rate * micros(rested)).min(most(cap.rate));
        }
        let tiers = self.tiers.iter().enumerate();
        TierSet::of(
            tiers.filter_map(|(tier, cap)| cap.as_ref().is_none_or(|cap| cap.left > 0.0).then_some(tier)),
        )
    }

    /// When a tier that may take no time at `now` may again.
    pub fn opens(&self, tier: usize, now: Instant) -> Instant {
        let rest =
            self.tiers.get(tier).and_then(Option::as_ref).map_or(0.0, |cap| (1.0 - cap.left) / cap.rate);
        now + Duration::from_micros(rest.clamp(1.0, 1e12) as u64)
    }

    /// Takes so many microseconds from a tier, or gives them back.
    pub fn spend(&mut self, tier: usize, micros: i64) {
        if let Some(Some(cap)) = self.tiers.get_mut(tier) {
            cap.left -= micros as f64;
        }
    }
}

impl Cap {
    /// 1 is none.
    fn new(share: f64, instances: usize) -> Option<Self> {
        let rate = share * instances as f64;
        (share < 1.0).then(|| Self { rate, left: most(rate) })
    }
}

fn most(rate: f64) -> f64 {
    rate * micros(SAVED)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::batcher::BatchPolicy;
    use super::super::lane::Waiting;
    use super::super::scheduler::{Next, Scheduler};
    use super::*;

    struct Row(Instant);

    impl Waiting for Row {
        type Key = ();
        type Tenant = ();
        fn key(&self) -> &() {
            &()
        }
        fn tenant(&self) -> &() {
            &()
        }
        fn rows(&self) -> u32 {
            1
        }
        fn arrived(&self) -> Instant {
            self.0
        }
        fn deadline(&self) -> Option<Instant> {
            None
        }
        fn is_urgent(&self) -> bool {
            false
        }
    }

    proptest! {
        /// A backlogged tier gets its cap and no more, whether it is alone or not; the others get the rest.
        #[test]
        fn a_capped_tier_takes_its_part(
            share in 0.05f64..0.95,
            former in 0.05f64..1.05,
            row_us in 500i64..5_000,
            most in 1u32..17,
            is_alone: bool,
        ) {
            let start = Instant::now();
            let policy = BatchPolicy {
                max_batch_size: most,
                preferred_batch_sizes: vec![],
                max_queue_delay: Duration::ZERO,
                max_batch_time: None,
            };
            // By weight the capped one would get nearly all.
            let mut scheduler = Scheduler::new(&[1_000, 1], policy).capped(Caps::new([former, 1.0], 1));
            scheduler.retune(&[1_000, 1], &[share, 1.0], 1);
            let (mut now, mut taken) = (start, [0i64; 2]);
            let length = Duration::from_secs(4);
            while now - start < length {
                while scheduler.waiting(0) < 64 {
                    scheduler.push(0, Row(now));
                }
                while !is_alone && scheduler.waiting(1) < 64 {
                    scheduler.push(1, Row(now));
                }
                let before = [scheduler.waiting(0), scheduler.waiting(1)];
                match scheduler.next(TierSet::ALL, now) {
                    Next::Run { batch, charged, .. } => {
                        let ran = [before[0] - scheduler.waiting(0), before[1] - scheduler.waiting(1)];
                        let cost = row_us * i64::try_from(batch.len()).unwrap();
                        taken.iter_mut().zip(ran).for_each(|(taken, rows)| *taken += row_us * rows as i64);
                        let tiers = std::iter::repeat_n(0, ran[0]).chain(std::iter::repeat_n(1, ran[1]));
                        let busy = Duration::from_micros(cost.unsigned_abs());
                        scheduler.ran(tiers.map(|tier| (tier, &(), 1)), charged, busy);
                        now += busy;
                    }
                    Next::WaitUntil(due) => {
                        prop_assert!(is_alone && due > now);
                        now = due;
                    }
                    Next::Idle => prop_assert!(false, "idle with a backlog"),
                }
            }
            let part = taken[0] as f64 / micros(length);
            let slack = (f64::from(most) * 5_000.0 + micros(SAVED)) / micros(length);
            prop_assert!((part - share).abs() < slack, "took {part} of {share}");
            if !is_alone {
                let rest = taken[1] as f64 / micros(length);
                prop_assert!((rest - (1.0 - share)).abs() < slack, "the other got {rest} beside {share}");
            }
        }
    }
}
