//! Properties of the scheduler over arbitrary arrivals.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::tier_set::TierSet;
use super::*;

mod company;
mod fairness;
mod sizes;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::schedule) struct Request {
    pub(in crate::schedule) id: u32,
    key: u8,
    tenant: u8,
    rows: u32,
    most_rows: u32,
    arrived: Instant,
    deadline: Option<Instant>,
    is_urgent: bool,
}

impl Waiting for Request {
    type Key = u8;
    type Tenant = u8;
    fn key(&self) -> &u8 {
        &self.key
    }
    fn tenant(&self) -> &u8 {
        &self.tenant
    }
    fn rows(&self) -> u32 {
        self.rows
    }
    fn most_rows(&self) -> u32 {
        self.most_rows
    }
    fn arrived(&self) -> Instant {
        self.arrived
    }
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_urgent(&self) -> bool {
        self.is_urgent
    }
}

pub(in crate::schedule) fn policy(max_batch_size: u32) -> BatchPolicy {
    BatchPolicy {
        max_batch_size,
        preferred_batch_sizes: vec![],
        max_queue_delay: Duration::ZERO,
        max_batch_time: None,
    }
}

pub(in crate::schedule) fn request(id: u32, now: Instant) -> Request {
    Request {
        id,
        key: 0,
        tenant: 0,
        rows: 1,
        most_rows: u32::MAX,
        arrived: now,
        deadline: None,
        is_urgent: false,
    }
}

proptest! {
    /// Nothing is lost or doubled, batches keep to size, key and budget, expired ones never run, order holds within tenant and
    /// key.
    #[test]
    fn every_request_leaves_once(
        arrivals in prop::collection::vec((0usize..3, 0u8..3, 0u8..4, 1u32..4, prop::option::of(0u64..20), any::<bool>()), 1..200),
        max_batch_size in 1u32..9,
        budget in 1u32..40,
        serve_every in 1usize..10,
    ) {
        let start = Instant::now();
        // A row has 1, 4 or 16 elements.
        let elements = |key: u8| 4u32.pow(key.into());
        let mut scheduler = Scheduler::new(&[8, 4, 1], policy(max_batch_size));
        let mut tier_of = HashMap::new();
        let mut left: Vec<Request> = Vec::new();
        let mut serve = |scheduler: &mut Scheduler<Request>, now: Instant| match scheduler.next(TierSet::ALL, now) {
            Next::Run { batch, expired, .. } => {
                let rows: u32 = batch.iter().map(|r| r.rows).sum();
                assert!(rows <= max_batch_size.max(3), "{rows} rows"); // one oversized request runs alone
                assert!(batch.len() <= 1 || rows <= max_batch_size);
                assert!(batch.len() <= 1 || rows * elements(batch[0].key) <= budget);
                assert!(batch.windows(2).all(|pair| pair[0].key == pair[1].key));
                assert!(batch.iter().all(|r| r.deadline.is_none_or(|d| d > now)));
                assert!(expired.iter().all(|r| r.deadline.is_some_and(|d| d <= now)));
                assert!(!batch.is_empty() || !expired.is_empty());
                left.extend(batch);
                left.extend(expired);
                true
            }
            Next::WaitUntil(_) => panic!("there is no delay to wait for"),
            Next::Idle => false,
        };
        for (id, (tier, key, tenant, rows, deadline, is_urgent)) in arrivals.iter().copied().enumerate() {
            let now = start + Duration::from_millis(id as u64);
            let deadline = deadline.map(|ms| now + Duration::from_millis(ms));
            let id = u32::try_from(id).unwrap();
            tier_of.insert(id, tier);
            let most_rows = (budget / elements(key)).max(1);
            let request = Request { key, tenant, rows, most_rows, deadline, is_urgent, ..request(id, now) };
            scheduler.push(tier, request);
            if (id as usize).is_multiple_of(serve_every) {
                serve(&mut scheduler, now);
            }
        }
        let end = start + Duration::from_secs(1);
        while serve(&mut scheduler, end) {}
        prop_assert!(scheduler.is_empty());
        let mut ids: Vec<u32> = left.iter().map(|r| r.id).collect();
        let order = ids.clone();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), arrivals.len());
        for (position, later) in order.iter().enumerate() {
            for earlier in &order[..position] {
                let (a, b) = (&left[order.iter().position(|x| x == earlier).unwrap()], &left[position]);
                let alike = a.key == b.key && a.tenant == b.tenant && a.is_urgent == b.is_urgent;
                let same = tier_of[earlier] == tier_of[later] && alike;
                let both_run = a.deadline.is_none() && b.deadline.is_none();
                prop_assert!(!(same && both_run && earlier > later), "{} ran before {}", earlier, later);
            }
        }
    }

    /// While all tiers are backlogged, each is served its weight's share within 2 %, whatever its weight was before.
    #[test]
    fn shares_follow_weights(
        weights in prop::collection::vec((1u32..10, 1u32..10), 2..5),
        max_batch_size in 1u32..17,
        batches_before in 0usize..50,
    ) {
        let now = Instant::now();
        let (weights, former): (Vec<u32>, Vec<u32>) = weights.into_iter().unzip();
        let mut scheduler = Scheduler::new(&former, policy(max_batch_size));
        let total: u32 = weights.iter().sum();
        let per_lane = 2000 * weights.iter().max().unwrap();
        for tier in 0..weights.len() {
            for id in 0..per_lane {
                scheduler.push(tier, Request { key: u8::try_from(tier).unwrap(), ..request(id, now) });
            }
        }
        for _ in 0..batches_before {
            scheduler.next(TierSet::ALL, now);
        }
        scheduler.retune(&weights, &vec![1.0; weights.len()], 1);
        let mut served = vec![0u32; weights.len()];
        while served.iter().sum::<u32>() < total * 500 {
            let Next::Run { batch, .. } = scheduler.next(TierSet::ALL, now) else { panic!("work waits") };
            served[batch[0].key as usize] += u32::try_from(batch.len()).unwrap();
        }
        let sum = f64::from(served.iter().sum::<u32>());
        for (tier, &weight) in weights.iter().enumerate() {
            let share = f64::from(served[tier]) / sum;
            let wanted = f64::from(weight) / f64::from(total);
            prop_assert!((share - wanted).abs() <= 0.02, "tier {tier}: {share} of {wanted}, {served:?}");
        }
    }
}

#[test]
fn a_premium_request_that_finds_its_lane_empty_is_next() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[8, 4, 1], policy(4));
    for id in 0..1000 {
        scheduler.push(2, Request { key: 2, ..request(id, now) });
    }
    for _ in 0..50 {
        scheduler.next(TierSet::ALL, now);
        scheduler.push(0, request(5000, now));
        let Next::Run { batch, .. } = scheduler.next(TierSet::ALL, now) else { panic!("work waits") };
        assert_eq!(batch[0].id, 5000);
    }
}

#[test]
fn a_tier_that_empties_its_lane_again_and_again_gets_no_more_than_its_share() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[8, 1], policy(64));
    let mut served = [0u32; 2];
    for id in 0..40_000 {
        scheduler.push(0, request(id, now));
    }
    while served[0] < 20_000 {
        // One large request at a time, overdrawing what a round gives.
        if scheduler.waiting(1) == 0 {
            scheduler.push(1, Request { key: 1, rows: 64, ..request(100_000, now) });
        }
        let Next::Run { batch, .. } = scheduler.next(TierSet::ALL, now) else { panic!("work waits") };
        served[usize::from(batch[0].key)] += batch.iter().map(|request| request.rows).sum::<u32>();
    }
    let share = f64::from(served[1]) / f64::from(served[0] + served[1]);
    assert!((share - 1.0 / 9.0).abs() < 0.02, "{share}, {served:?}");
}

#[test]
fn shares_are_of_time_not_of_rows() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[1, 1], policy(16));
    // A row alone takes as long as sixteen together.
    let mut time = [Duration::ZERO; 2];
    for _ in 0..2_000 {
        while scheduler.waiting(0) < 16 {
            scheduler.push(0, Request { key: 100, ..request(0, now) });
        }
        if scheduler.waiting(1) == 0 {
            scheduler.push(1, Request { key: 200, ..request(0, now) });
            scheduler.push(1, Request { key: 201, ..request(0, now) });
        }
        let Next::Run { batch, charged, .. } = scheduler.next(TierSet::ALL, now) else {
            panic!("work waits")
        };
        let took = Duration::from_millis(10);
        let tier = usize::from(batch[0].key >= 200);
        scheduler.ran(batch.iter().map(|request| (tier, &request.tenant, request.rows)), charged, took);
        time[tier] += took;
    }
    let share = time[1].as_secs_f64() / (time[0] + time[1]).as_secs_f64();
    assert!((share - 0.5).abs() < 0.05, "{share}");
}

#[test]
fn rows_of_one_size_that_take_unlike_times_are_charged_unlike() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[1, 1], policy(4));
    let mut time = [Duration::ZERO; 2];
    for _ in 0..4_000 {
        for tier in 0..2 {
            while scheduler.waiting(tier) < 8 {
                scheduler.push(tier, Request { key: u8::try_from(tier).unwrap(), ..request(0, now) });
            }
        }
        let Next::Run { batch, charged, .. } = scheduler.next(TierSet::ALL, now) else {
            panic!("work waits")
        };
        let tier = usize::from(batch[0].key);
        // As with short and long sequences.
        let took = Duration::from_millis([2, 50][tier]);
        scheduler.ran(batch.iter().map(|request| (tier, &request.tenant, request.rows)), charged, took);
        time[tier] += took;
    }
    let share = time[1].as_secs_f64() / (time[0] + time[1]).as_secs_f64();
    assert!((share - 0.5).abs() < 0.05, "{share}");
}

#[test]
fn tiers_share_a_batch_where_keys_agree() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[8, 4, 1], policy(4));
    for tier in 0..3 {
        scheduler.push(tier, request(u32::try_from(tier).unwrap(), now));
    }
    let Next::Run { batch, .. } = scheduler.next(TierSet::ALL, now) else { panic!("work waits") };
    assert_eq!(batch.iter().map(|r| r.id).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn company_is_not_waited_for_past_a_deadline() {
    let now = Instant::now();
    let delay = Duration::from_millis(50);
    let mut scheduler = Scheduler::new(&[1], BatchPolicy { max_queue_delay: delay, ..policy(4) });
    scheduler.learn(1, Duration::from_millis(5));
    let deadline = Some(now + Duration::from_millis(30));
    scheduler.push(0, Request { deadline: None, ..request(0, now) });
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(due) if due == now + delay));
    scheduler.push(0, Request { deadline, ..request(1, now) });
    // Two rows take 10 ms, by the size known; half more, and the way back.
    assert!(
        matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(due) if due == now + Duration::from_millis(10))
    );
    let later = now + Duration::from_millis(10);
    assert!(matches!(scheduler.next(TierSet::ALL, later), Next::Run { batch, .. } if batch.len() == 2));
}

#[test]
fn an_idle_instance_waits_for_company_only_so_long() {
    let now = Instant::now();
    let delay = Duration::from_millis(5);
    let mut scheduler = Scheduler::new(&[1], BatchPolicy { max_queue_delay: delay, ..policy(4) });
    scheduler.push(0, request(0, now));
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(due) if due == now + delay));
    assert!(matches!(scheduler.next(TierSet::ALL, now + delay), Next::Run { batch, .. } if batch.len() == 1));
    assert!(matches!(scheduler.next(TierSet::ALL, now + delay), Next::Idle));
}

#[test]
fn a_reserved_instance_serves_its_tiers_only() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[8, 4, 1], policy(4));
    let reserved = TierSet::of([0]);
    for id in 0..10 {
        scheduler.push(2, request(id, now));
    }
    assert!(matches!(scheduler.next(reserved, now), Next::Idle));
    scheduler.push(0, request(50, now));
    let Next::Run { batch, .. } = scheduler.next(reserved, now) else { panic!("premium work waits") };
    assert_eq!(batch.iter().map(|r| r.id).collect::<Vec<_>>(), [50], "not filled up with others");
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::Run { batch, .. } if batch.len() == 4));
}

#[test]
fn tiers_that_share_instances_keep_their_shares_beside_one_with_its_own() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[8, 4, 1], policy(4));
    let (own, shared) = (TierSet::of([0]), TierSet::of([1, 2]));
    let mut served = [0u32; 3];
    for turn in 0..10_000 {
        for tier in 0..3 {
            while scheduler.waiting(tier) < 8 {
                scheduler.push(tier, Request { key: u8::try_from(tier).unwrap(), ..request(0, now) });
            }
        }
        // One instance of the premium's own, four for the others.
        let serves = if turn % 5 == 0 { own } else { shared };
        let Next::Run { batch, .. } = scheduler.next(serves, now) else { panic!("work waits") };
        served[usize::from(batch[0].key)] += u32::try_from(batch.len()).unwrap();
    }
    let share = f64::from(served[2]) / f64::from(served[1] + served[2]);
    assert!((share - 0.2).abs() < 0.02, "{share}, {served:?}");
}

#[test]
fn tenants_share_time_not_rows() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[1], policy(4));
    let mut time = [Duration::ZERO; 2];
    let mut waiting = [0u32; 2];
    for _ in 0..4_000 {
        for tenant in 0..2u8 {
            while waiting[usize::from(tenant)] < 8 {
                scheduler.push(0, Request { key: tenant, tenant, ..request(0, now) });
                waiting[usize::from(tenant)] += 1;
            }
        }
        let Next::Run { batch, charged, .. } = scheduler.next(TierSet::ALL, now) else {
            panic!("work waits")
        };
        let tenant = usize::from(batch[0].tenant);
        waiting[tenant] -= u32::try_from(batch.len()).unwrap();
        // As with short and long sequences.
        let took = Duration::from_millis([2, 50][tenant]);
        scheduler.ran(batch.iter().map(|request| (0, &request.tenant, request.rows)), charged, took);
        time[tenant] += took;
    }
    let share = time[1].as_secs_f64() / (time[0] + time[1]).as_secs_f64();
    assert!((share - 0.5).abs() < 0.05, "{share}");
}

#[test]
fn a_batch_is_full_at_what_its_key_allows() {
    let now = Instant::now();
    let delay = Duration::from_millis(50);
    let mut scheduler = Scheduler::new(&[1], BatchPolicy { max_queue_delay: delay, ..policy(64) });
    let long = |id| Request { key: 1, most_rows: 2, ..request(id, now) };
    scheduler.push(0, long(0));
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(_)));
    for id in 1..4 {
        scheduler.push(0, long(id));
    }
    scheduler.push(0, request(4, now));
    scheduler.push(0, request(5, now));
    for _ in 0..2 {
        assert!(matches!(scheduler.next(TierSet::ALL, now), Next::Run { batch, .. } if batch.len() == 2));
    }
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(_)), "two of many wait for more");
}
