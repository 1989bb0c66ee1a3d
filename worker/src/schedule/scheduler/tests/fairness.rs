//! Shares and waits, whatever arrives, with costs that are learned while it runs.

use super::*;

/// Rows of a request, at most.
const MOST_ROWS: u32 = 4;

/// Batches take `base` and `row` microseconds for each of their rows.
#[derive(Clone, Copy, Debug)]
struct Model {
    base: u64,
    row: u64,
}

impl Model {
    fn takes(self, rows: u32) -> Duration {
        Duration::from_micros(self.base + self.row * u64::from(rows))
    }
}

/// Requests that come at once: how many, the rows of each, whose they are, whether they are urgent.
type Burst = (usize, u32, u8, bool);

/// A scheduler whose tiers' requests come in bursts whenever less than a batch waits. Each tier has a key of its own.
struct Flood {
    scheduler: Scheduler<Request>,
    model: Model,
    bursts: Vec<Burst>,
    max_batch_size: u32,
    next: usize,
    now: Instant,
}

impl Flood {
    fn new(weights: &[u32], model: Model, bursts: Vec<Burst>, max_batch_size: u32) -> Self {
        let scheduler = Scheduler::new(weights, policy(max_batch_size));
        Self { scheduler, model, bursts, max_batch_size, next: 0, now: Instant::now() }
    }

    fn fill(&mut self, tier: usize) {
        while self.scheduler.waiting(tier) < self.max_batch_size as usize {
            let (count, rows, tenant, is_urgent) = self.bursts[self.next % self.bursts.len()];
            self.next += 1;
            for _ in 0..count {
                let key = u8::try_from(tier).unwrap();
                self.scheduler.push(tier, Request { key, rows, tenant, is_urgent, ..request(0, self.now) });
            }
        }
    }

    /// Runs a batch. Returns whose it was and the time that it took.
    fn run(&mut self) -> (usize, Duration) {
        let next = self.scheduler.next(TierSet::ALL, self.now);
        let Next::Run { batch, charged, .. } = next else { panic!("{next:?} while work waits") };
        let tier = usize::from(batch[0].key);
        let took = self.model.takes(batch.iter().map(|request| request.rows).sum());
        let requests = batch.iter().map(|request| (tier, &request.tenant, request.rows));
        self.scheduler.ran(requests, charged, took);
        self.now += took;
        (tier, took)
    }
}

fn bursts() -> impl Strategy<Value = Vec<Burst>> {
    prop::collection::vec((1usize..40, 1..=MOST_ROWS, 0u8..4, any::<bool>()), 1..40)
}

fn models() -> impl Strategy<Value = Model> {
    (0u64..2_000, 50u64..500).prop_map(|(base, row)| Model { base, row })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// While all tiers are backlogged, each has its weight's share of the time within 2 %.
    #[test]
    fn shares_of_the_time_follow_weights_whatever_arrives(
        weights in prop::collection::vec(1u32..10, 2..5),
        model in models(),
        bursts in bursts(),
        max_batch_size in 1u32..17,
    ) {
        let mut flood = Flood::new(&weights, model, bursts, max_batch_size);
        let mut time = vec![Duration::ZERO; weights.len()];
        for _ in 0..2_000 {
            (0..weights.len()).for_each(|tier| flood.fill(tier));
            let (tier, took) = flood.run();
            time[tier] += took;
        }
        let total = time.iter().sum::<Duration>().as_secs_f64();
        let weight: u32 = weights.iter().sum();
        for (tier, time) in time.iter().enumerate() {
            let (share, wanted) = (time.as_secs_f64() / total, f64::from(weights[tier]) / f64::from(weight));
            prop_assert!((share - wanted).abs() <= 0.02, "tier {tier}: {share} of {wanted}");
        }
    }

    /// Beside tiers that are always backlogged, a request of a tier that owes nothing waits for two rounds at most, in each of which
    /// every tier may exceed its credit by a batch.
    #[test]
    fn no_tier_waits_for_longer_than_two_rounds(
        weights in prop::collection::vec(1u32..10, 2..5),
        tier in any::<prop::sample::Index>(),
        model in models(),
        bursts in bursts(),
        max_batch_size in 1u32..17,
        rows in 1..=MOST_ROWS,
    ) {
        let tier = tier.index(weights.len());
        let others: Vec<usize> = (0..weights.len()).filter(|&other| other != tier).collect();
        let mut flood = Flood::new(&weights, model, bursts, max_batch_size);
        // What a unit of weight is worth, and what a batch takes, at most.
        let (quantum, batch) = (model.takes(1), model.takes(max_batch_size.max(MOST_ROWS)));
        let weight: u32 = weights.iter().sum();
        let round = quantum * weight + batch * u32::try_from(weights.len()).unwrap();
        // For what the request before cost to be paid off.
        let rest = round * 2 + model.takes(rows) * weight / weights[tier];
        for _ in 0..5 {
            let until = flood.now + rest;
            while flood.now < until {
                others.iter().for_each(|&other| flood.fill(other));
                flood.run();
            }
            let key = u8::try_from(tier).unwrap();
            flood.scheduler.push(tier, Request { key, rows, ..request(1, flood.now) });
            let came = flood.now;
            loop {
                others.iter().for_each(|&other| flood.fill(other));
                let waited = flood.now - came;
                prop_assert!(waited <= round * 2, "tier {tier}: {waited:?} of {:?}", round * 2);
                if flood.run().0 == tier {
                    break;
                }
            }
        }
    }
}
