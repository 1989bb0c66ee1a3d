//! How large batches are, by what was learned.

use super::*;

const LIMIT: Duration = Duration::from_millis(100);

/// A scheduler that learned from requests what batches cost, with 64 rows waiting.
fn backlogged(policy: BatchPolicy, costs: &[(u32, u64)], now: Instant) -> Scheduler<Request> {
    let mut scheduler = Scheduler::new(&[1], policy);
    for &(rows, ms) in costs {
        let charged = i64::try_from(ms * 1000).unwrap() / i64::from(rows);
        scheduler.ran(std::iter::once((0, &0, rows)), charged, Duration::from_millis(ms));
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

/// Runs so many batches, of which each takes as long as `took` says of its rows, and never lets fewer than 8 rows wait. Returns their rows.
fn run(
    scheduler: &mut Scheduler<Request>,
    batches: usize,
    mut took: impl FnMut(usize) -> Duration,
) -> Vec<usize> {
    let mut now = Instant::now();
    let mut sizes = Vec::with_capacity(batches);
    for id in 64.. {
        while scheduler.waiting(0) < 8 {
            scheduler.push(0, request(id, now));
        }
        let Next::Run { batch, charged, .. } = scheduler.next(TierSet::ALL, now) else {
            panic!("work waits")
        };
        let busy = took(batch.len());
        now += busy;
        scheduler.ran(batch.iter().map(|request| (0, &request.tenant, 1)), charged, busy);
        sizes.push(batch.len());
        if sizes.len() == batches {
            break;
        }
    }
    sizes
}

#[test]
fn a_batch_takes_no_longer_than_it_may() {
    let now = Instant::now();
    let policy = BatchPolicy { max_batch_time: Some(LIMIT), ..policy(64) };
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
    let limited = BatchPolicy { max_batch_time: Some(LIMIT), ..policy(64) };
    let costs = [(1, 25), (2, 50), (4, 100), (64, 1_600)];
    assert_eq!(batch_of(&mut backlogged(limited.clone(), &costs, now), now), 1);
    assert_eq!(batch_of(&mut backlogged(policy(64), &costs, now), now), 64, "nothing bounds its time");
    let named = BatchPolicy { preferred_batch_sizes: vec![4], ..limited };
    assert_eq!(batch_of(&mut backlogged(named, &costs, now), now), 4, "its size is named");
}

/// Two rows take as long as one, and more twice as long: twos pay, whatever was known before.
#[test]
fn the_size_that_pays_is_found_from_above_and_below() {
    let policy = BatchPolicy { max_batch_time: Some(LIMIT), ..policy(4) };
    for known in [&[(1, 25), (2, 50), (4, 100)][..], &[(1, 25), (4, 50)]] {
        let mut scheduler = backlogged(policy.clone(), known, Instant::now());
        let sizes = run(&mut scheduler, 2_000, |rows| Duration::from_millis(if rows > 2 { 50 } else { 25 }));
        assert_eq!(scheduler.pace().most_rows, 2, "{known:?}");
        let twos = sizes.iter().filter(|&&rows| rows == 2).count();
        assert!(twos > 1_000, "{known:?}: {twos}");
    }
}

/// What ran once, at the start, says little: the sizes next to the one that pays are tried soon.
#[test]
fn a_bad_beginning_is_got_over_soon() {
    let policy = BatchPolicy { max_batch_time: Some(LIMIT), ..policy(4) };
    let mut scheduler = backlogged(policy, &[(1, 40), (4, 100)], Instant::now());
    let sizes = run(&mut scheduler, 40, |rows| Duration::from_millis(25 * rows as u64));
    assert_eq!(sizes[..8], [4; 8]);
    assert_eq!(scheduler.pace().most_rows, 1, "{sizes:?}");
    // Later they are tried no more than now and then.
    let sizes = run(&mut scheduler, 1_280, |rows| Duration::from_millis(25 * rows as u64));
    let others = sizes.iter().filter(|&&rows| rows != 1).count();
    assert!((5..=20).contains(&others), "{others}");
}

/// However much what batches take jitters, and whatever is stolen from some: under a backlog nothing else makes a smaller one run.
#[test]
fn sizes_do_not_grow_by_chance_for_good() {
    let policy = BatchPolicy { max_batch_time: Some(LIMIT), ..policy(4) };
    let mut scheduler = backlogged(policy, &[(1, 31), (2, 50), (4, 100)], Instant::now());
    let (mut state, mut batch) = (7u64, 0);
    let sizes = run(&mut scheduler, 20_000, |rows| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        batch += 1;
        let jitter = (state >> 40) as f64 / (1u64 << 24) as f64; // 0 to 1
        let stolen = if batch % 50 == 0 { 4.0 } else { 1.0 };
        Duration::from_millis(25).mul_f64(rows as f64 * (0.95 + 0.1 * jitter) * stolen)
    });
    let single = sizes[2_000..].iter().filter(|&&rows| rows == 1).count();
    assert!(single > 15_000, "{single} of 18000");
}

#[test]
fn a_trial_waits_for_no_company() {
    let now = Instant::now();
    let delay = Duration::from_secs(10);
    let policy = BatchPolicy { max_batch_time: Some(LIMIT), max_queue_delay: delay, ..policy(4) };
    let mut scheduler = backlogged(policy, &[(1, 40), (2, 50), (4, 100)], now);
    scheduler.drain();
    let mut sizes = [0; 4];
    for id in 0.. {
        scheduler.push(0, request(id, now));
        if scheduler.waiting(0) == 3 {
            // One more than pays, and one fewer than the larger batch takes.
            sizes[batch_of(&mut scheduler, now)] += 1;
        }
        if sizes[3] > 0 {
            break;
        }
    }
    assert!(sizes[2] > 5, "{sizes:?}");
}
