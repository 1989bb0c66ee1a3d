//! How large batches are, by what was learned.

use super::*;

/// A scheduler of batches up to 64 rows and 100 ms that learned what batches cost, with as many rows waiting as they may have.
fn backlogged(policy: BatchPolicy, costs: &[(u32, u64)], now: Instant) -> Scheduler<Request> {
    let mut scheduler = Scheduler::new(&[1], policy);
    for &(rows, ms) in costs {
        scheduler.learn(rows, Duration::from_millis(ms));
    }
    for id in 0..64 {
        scheduler.push(0, request(id, now));
    }
    scheduler
}

fn batch_of(scheduler: &mut Scheduler<Request>, now: Instant) -> usize {
    let Next::Run { batch, .. } = scheduler.next(TierSet::ALL, now) else { panic!("work waits") };
    batch.len()
}

#[test]
fn a_batch_takes_no_longer_than_it_may() {
    let now = Instant::now();
    let policy = BatchPolicy { max_batch_time: Some(Duration::from_millis(100)), ..policy(64) };
    // In a larger one a row is cheaper.
    let mut scheduler = backlogged(policy, &[(1, 40), (4, 100), (64, 1_280)], now);
    assert_eq!(batch_of(&mut scheduler, now), 4);
    // One that is longer by itself still runs.
    scheduler.push(0, Request { key: 1, rows: 10, is_urgent: true, ..request(64, now) });
    assert_eq!(batch_of(&mut scheduler, now), 1);
}

#[test]
fn a_batch_is_no_larger_than_pays() {
    let now = Instant::now();
    let limited = BatchPolicy { max_batch_time: Some(Duration::from_millis(100)), ..policy(64) };
    let costs = [(1, 25), (2, 50), (4, 100), (64, 1_600)];
    assert_eq!(batch_of(&mut backlogged(limited.clone(), &costs, now), now), 1);
    assert_eq!(batch_of(&mut backlogged(policy(64), &costs, now), now), 64, "nothing bounds its time");
    let named = BatchPolicy { preferred_batch_sizes: vec![4], ..limited };
    assert_eq!(batch_of(&mut backlogged(named, &costs, now), now), 4, "its size is named");
}

#[test]
fn what_a_larger_batch_costs_is_learned_anew() {
    let mut now = Instant::now();
    let policy = BatchPolicy { max_batch_time: Some(Duration::from_millis(100)), ..policy(4) };
    let mut scheduler = backlogged(policy, &[(1, 25), (2, 50), (4, 100)], now);
    let (mut id, mut larger) = (64, 0);
    // Another machine: from now on two rows take as long as one, and four as long as two did.
    for _ in 0..10_000 {
        while scheduler.waiting(0) < 8 {
            scheduler.push(0, request(id, now));
            id += 1;
        }
        let Next::Run { batch, charged, .. } = scheduler.next(TierSet::ALL, now) else {
            panic!("work waits")
        };
        let took = Duration::from_millis(if batch.len() > 2 { 50 } else { 25 });
        now += took;
        scheduler.ran(batch.iter().map(|request| (0, &request.tenant, 1)), charged, took);
        larger += usize::from(batch.len() > 1);
    }
    assert_eq!(scheduler.pace().most_rows, 2);
    assert!(larger > 5_000, "{larger}");
}
