//! What an idle instance waits for, where the model's configuration lets it wait at all.

use super::*;

const DELAY: Duration = Duration::from_millis(50);

fn of_key(key: u8, id: u32, now: Instant) -> Request {
    Request { key, ..request(id, now) }
}

fn ids(next: Next<Request>) -> Vec<u32> {
    let Next::Run { batch, .. } = next else { panic!("{next:?}") };
    batch.iter().map(|request| request.id).collect()
}

#[test]
fn nobody_waits_for_company_beside_a_full_batch_of_another_key() {
    let now = Instant::now();
    let policy = BatchPolicy { max_queue_delay: DELAY, ..policy(4) };
    let mut scheduler = Scheduler::new(&[8, 4, 1], policy);
    scheduler.push(0, of_key(0, 0, now));
    for id in 1..4 {
        scheduler.push(2, of_key(1, id, now));
    }
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(due) if due == now + DELAY));
    scheduler.push(2, of_key(1, 4, now));
    assert!(matches!(scheduler.next(TierSet::of([0]), now), Next::WaitUntil(_)));
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)), [0], "whose turn it is");
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)).len(), 4);
    assert!(scheduler.is_empty());
}

#[test]
fn a_batch_that_its_key_bounds_is_full_beside_others_too() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[1], BatchPolicy { max_queue_delay: DELAY, ..policy(64) });
    scheduler.push(0, of_key(0, 0, now));
    for id in 1..3 {
        scheduler.push(0, Request { most_rows: 2, ..of_key(1, id, now) });
    }
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)), [0]);
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)), [1, 2]);
}

#[test]
fn company_is_not_waited_for_past_the_deadline_of_another_key() {
    let now = Instant::now();
    let ms = Duration::from_millis;
    let mut scheduler = Scheduler::new(&[1], BatchPolicy { max_queue_delay: DELAY, ..policy(4) });
    scheduler.learn(1, ms(4));
    scheduler.push(0, of_key(0, 0, now));
    scheduler.push(0, Request { deadline: Some(now + ms(60)), ..of_key(1, 1, now) });
    // The first takes 4 ms, and a batch of four 16; half more, and the way back of the second.
    let latest = now + ms(25);
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(due) if due == latest));
    assert_eq!(ids(scheduler.next(TierSet::ALL, latest)), [0]);
    let own = now + ms(49);
    assert!(matches!(scheduler.next(TierSet::ALL, latest), Next::WaitUntil(due) if due == own));
    assert_eq!(ids(scheduler.next(TierSet::ALL, own)), [1]);
}

#[test]
fn company_is_not_waited_for_beside_whoever_has_waited_for_long() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(&[8, 1], BatchPolicy { max_queue_delay: DELAY, ..policy(4) });
    scheduler.push(1, of_key(1, 0, now));
    let due = now + DELAY;
    scheduler.push(0, of_key(0, 1, due - Duration::from_millis(1)));
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(until) if until == due));
    assert_eq!(ids(scheduler.next(TierSet::ALL, due)), [1], "whose turn it is");
    assert_eq!(ids(scheduler.next(TierSet::ALL, due)), [0]);
}

#[test]
fn requests_of_many_rows_reach_a_preferred_size_together() {
    let now = Instant::now();
    let preferred = BatchPolicy { preferred_batch_sizes: vec![8, 16], ..policy(64) };
    let mut scheduler = Scheduler::new(&[1], preferred);
    for id in 0..3 {
        scheduler.push(0, Request { rows: 5, ..request(id, now) });
    }
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)), [0, 1]);
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)), [2]);
}

#[test]
fn a_batch_is_of_a_preferred_size_where_one_waits() {
    let now = Instant::now();
    let preferred = BatchPolicy { preferred_batch_sizes: vec![4, 8], max_queue_delay: DELAY, ..policy(64) };
    let mut scheduler = Scheduler::new(&[1], preferred);
    for id in 0..15 {
        scheduler.push(0, request(id, now));
    }
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)).len(), 8);
    assert_eq!(ids(scheduler.next(TierSet::ALL, now)).len(), 4);
    assert!(matches!(scheduler.next(TierSet::ALL, now), Next::WaitUntil(due) if due == now + DELAY));
    assert_eq!(ids(scheduler.next(TierSet::ALL, now + DELAY)).len(), 3);
}
