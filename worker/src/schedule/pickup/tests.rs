use std::sync::Arc;
use std::thread;

use super::*;
use crate::schedule::scheduler::tests::{Request, policy, request};

fn pickup(ids: impl IntoIterator<Item = u32>) -> Arc<Pickup<Request>> {
    let pickup = Pickup::new(Scheduler::new(&[2, 1], policy(4)));
    for id in ids {
        pickup.push(0, request(id, Instant::now())).unwrap();
    }
    Arc::new(pickup)
}

fn ids(collected: Option<Collected<Request>>) -> Vec<u32> {
    collected.map_or(Vec::new(), |collected| collected.batch.iter().map(|request| request.id).collect())
}

#[test]
fn while_paused_nothing_but_the_one_alone_is_handed_out() {
    let pickup = pickup([1, 2]);
    assert!(pickup.is_idle(), "nothing runs yet");
    pickup.pause();
    pickup.push_alone(1, request(9, Instant::now())).unwrap();
    assert!(!pickup.is_idle(), "one waits to run alone");
    assert_eq!(ids(pickup.collect(TierSet::ALL, false)), [9]);
    assert!(!pickup.is_idle(), "it runs");
    let next = thread::spawn({
        let pickup = Arc::clone(&pickup);
        move || ids(pickup.collect(TierSet::ALL, true))
    });
    while !pickup.is_idle() {
        thread::yield_now();
    }
    assert!(!next.is_finished(), "the others wait");
    pickup.resume();
    assert_eq!(next.join().unwrap(), [1, 2]);
    assert!(!pickup.is_idle());
}

#[test]
fn one_alone_waits_for_an_instance_of_its_tier() {
    let pickup = pickup([1]);
    pickup.push_alone(1, request(9, Instant::now())).unwrap();
    assert_eq!(ids(pickup.collect(TierSet::of([0]), false)), [1], "a reserved one leaves it");
    assert_eq!(ids(pickup.collect(TierSet::of([1]), false)), [9]);
}

#[test]
fn instances_of_all_tiers_leave_one_to_those_reserved_for_it() {
    let pickup = pickup([1, 2]);
    let reserved = TierSet::of([0]);
    assert_eq!(ids(pickup.collect(reserved, false)), [1, 2]);
    for id in [3, 4] {
        pickup.push(0, request(id, Instant::now())).unwrap();
    }
    pickup.push(1, request(5, Instant::now())).unwrap();
    assert_eq!(ids(pickup.collect(TierSet::ALL, false)), [5], "it has other work");
    assert_eq!(ids(pickup.collect(TierSet::ALL, true)), [3, 4], "it has none");
    for id in 6..11 {
        pickup.push(0, request(id, Instant::now())).unwrap();
    }
    pickup.push(1, request(11, Instant::now())).unwrap();
    let mut helped = ids(pickup.collect(TierSet::ALL, true));
    helped.sort_unstable();
    assert_eq!(helped, [6, 7, 8, 11], "more waits than fits a batch");
    assert_eq!(ids(pickup.collect(reserved, true)), [9, 10]);
}

#[test]
fn a_reserved_instance_that_rests_is_not_forestalled() {
    let pickup = pickup([]);
    let resting = thread::spawn({
        let pickup = Arc::clone(&pickup);
        move || ids(pickup.collect(TierSet::of([0]), false))
    });
    while pickup.lock().resting.is_empty() {
        thread::yield_now();
    }
    let mut state = pickup.lock();
    state.scheduler.push(0, request(1, Instant::now()));
    assert!(matches!(state.next(TierSet::ALL, Instant::now()), Next::Idle));
    drop(state);
    pickup.changed.notify_all();
    assert_eq!(resting.join().unwrap(), [1]);
    assert!(pickup.lock().resting.is_empty());
}

#[test]
fn what_a_reserved_instance_leaves_wakes_those_that_left_it() {
    let pickup = pickup(1..=8);
    pickup.pause();
    let collect = |serves| {
        let pickup = Arc::clone(&pickup);
        thread::spawn(move || ids(pickup.collect(serves, false)))
    };
    let instances = [collect(TierSet::of([0])), collect(TierSet::ALL)];
    while pickup.lock().resting.is_empty() {
        thread::yield_now();
    }
    pickup.resume();
    // Neither comes back, so each has a batch only if it was woken for it.
    let mut all: Vec<u32> = instances.into_iter().flat_map(|instance| instance.join().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=8).collect::<Vec<_>>());
}

#[test]
fn what_waits_comes_back_when_it_closes_paused_or_not() {
    let pickup = pickup([1, 2]);
    pickup.pause();
    pickup.push_alone(0, request(9, Instant::now())).unwrap();
    let mut unstarted: Vec<u32> = pickup.close().iter().map(|request| request.id).collect();
    unstarted.sort_unstable();
    assert_eq!(unstarted, [1, 2, 9]);
    assert!(pickup.collect(TierSet::ALL, false).is_none());
    assert!(pickup.is_idle());
    assert!(pickup.push(0, request(3, Instant::now())).is_err());
    assert!(pickup.push_alone(0, request(4, Instant::now())).is_err());
}

#[test]
fn what_waits_runs_before_it_closes_when_it_finishes() {
    let pickup = pickup([1]);
    pickup.push_alone(1, request(9, Instant::now())).unwrap();
    pickup.finish();
    pickup.push(1, request(2, Instant::now())).unwrap();
    // One that serves a tier of which nothing waits goes on waiting: more may come until all has been handed out.
    let other = thread::spawn({
        let pickup = Arc::clone(&pickup);
        move || ids(pickup.collect(TierSet::of([2]), false))
    });
    assert_eq!(ids(pickup.collect(TierSet::of([0, 1]), false)), [9]);
    assert!(!pickup.is_closed());
    assert_eq!(ids(pickup.collect(TierSet::of([0, 1]), true)), [1, 2]);
    assert!(pickup.is_closed() && !pickup.is_idle(), "the last batch still runs");
    assert!(pickup.push(0, request(3, Instant::now())).is_err());
    assert!(other.join().unwrap().is_empty());
    assert!(pickup.collect(TierSet::of([0, 1]), true).is_none());
    assert!(pickup.is_idle());
}

#[test]
fn one_that_finishes_with_nothing_to_do_closes_at_once() {
    let pickup = pickup([]);
    let waiting = thread::spawn({
        let pickup = Arc::clone(&pickup);
        move || pickup.collect(TierSet::ALL, false).is_none()
    });
    pickup.pause();
    pickup.finish();
    assert!(waiting.join().unwrap(), "paused or not");
}
