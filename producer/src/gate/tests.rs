use std::collections::VecDeque;

use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn with_nothing_in_the_queue_one_probe_passes_after_each_pause_and_pauses_grow() {
    let mut gate = Gate::default();
    let mut now = Instant::now();
    let mut admission = gate.admit("m.free", now).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let pause = gate.refused("m.free", &mut admission, now, 0.5);
        gate.ended("m.free", &admission, false, now);
        pauses.push(pause);
        assert_eq!(gate.admit("m.free", now), Err(pause), "{pauses:?}");
        assert!(gate.is_closed("m.free") && !gate.is_closed("m.premium"));
        let other = gate.admit("m.premium", now).expect("another queue is another matter");
        gate.ended("m.premium", &other, true, now);
        now += pause;
        admission = gate.admit("m.free", now).unwrap();
        assert!(admission.is_probe);
        assert_eq!(gate.admit("m.free", now), Err(PROBE_PATIENCE), "one probe at a time");
    }
    assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
    assert_eq!(pauses[7], LONGEST_PAUSE);
    gate.taken("m.free", &mut admission);
    assert!(!gate.is_closed("m.free"));
    let passed = std::iter::from_fn(|| gate.admit("m.free", now).ok()).take(100).count();
    assert_eq!(passed, 7, "carefully at first");
}

#[test]
fn what_was_on_its_way_says_nothing_new() {
    let mut gate = Gate::default();
    let now = Instant::now();
    let mut admissions: Vec<Admission> = (0..100).map(|_| gate.admit("k", now).unwrap()).collect();
    gate.refused("k", &mut admissions[0], now, 0.0);
    let until = gate.admit("k", now).unwrap_err();
    for admission in &mut admissions[1..] {
        assert!(gate.holds_back("k", admission, now).is_some(), "not even those that were to be sent");
        gate.refused("k", admission, now, 1.0);
    }
    assert_eq!(gate.admit("k", now), Err(until));
    // Nor does it invite to try again at once.
    assert_eq!(gate.refused("k", &mut admissions[1], now + PROBE_PATIENCE, 1.0), FIRST_PAUSE);
}

#[test]
fn a_probe_that_gets_lost_is_followed_by_another() {
    let mut gate = Gate::default();
    let now = Instant::now();
    let mut first = gate.admit("k", now).unwrap();
    let pause = gate.refused("k", &mut first, now, 0.0);
    gate.ended("k", &first, false, now);
    assert!(gate.admit("k", now + pause).is_ok());
    let lost = gate.admit("k", now + pause + PROBE_PATIENCE).unwrap();
    gate.ended("k", &lost, false, now);
    assert!(gate.admit("k", now).is_ok(), "it is known to have come to nothing");
}

#[test]
fn the_pause_spreads_with_the_jitter() {
    let now = Instant::now();
    let probes_after = |jitter| {
        let mut gate = Gate::default();
        let mut admission = gate.admit("k", now).unwrap();
        gate.refused("k", &mut admission, now, jitter);
        gate.ended("k", &admission, false, now);
        gate.admit("k", now).unwrap_err()
    };
    assert_eq!([0.0, 1.0].map(probes_after), [FIRST_PAUSE.mul_f64(0.75), FIRST_PAUSE.mul_f64(1.25)]);
}

#[test]
fn nothing_is_remembered_of_queues_with_nothing_under_way() {
    let mut gate = Gate::default();
    let mut now = Instant::now();
    let mut admission = gate.admit("k", now).unwrap();
    gate.taken("k", &mut admission);
    gate.ended("k", &admission, true, now);
    assert!(gate.flows.is_empty());
    let mut admission = gate.admit("k", now).unwrap();
    gate.refused("k", &mut admission, now, 0.0);
    gate.ended("k", &admission, false, now);
    assert_eq!(gate.flows.len(), 1, "a pause is");
    now += LONGEST_PAUSE;
    for _ in 0..3 {
        let mut admission = gate.admit("k", now).unwrap();
        gate.taken("k", &mut admission);
        now += QUIET;
        gate.ended("k", &admission, true, now);
    }
    assert!(gate.flows.is_empty());
}

#[test]
fn an_overload_of_long_ago_holds_nothing_back() {
    let mut gate = Gate::default();
    let now = Instant::now();
    let mut admissions: Vec<Admission> = (0..20).map(|_| gate.admit("k", now).unwrap()).collect();
    gate.taken("k", &mut admissions[1]);
    gate.refused("k", &mut admissions[0], now, 0.5);
    admissions.iter().for_each(|admission| gate.ended("k", admission, false, now));
    let admitted = |gate: &mut Gate, now| (0..100).filter(|_| gate.admit("k", now).is_ok()).count();
    assert!(admitted(&mut gate, now) < 10);
    assert_eq!(admitted(&mut gate, now + Duration::from_secs(3600)), 100);
}

#[test]
fn whoever_wants_no_answers_is_let_through_as_the_broker_takes_them() {
    let mut gate = Gate::default();
    let mut now = Instant::now();
    let mut admission = gate.admit("k", now).unwrap();
    now += gate.refused("k", &mut admission, now, 0.5);
    gate.ended("k", &admission, false, now);
    for round in 0..5 {
        let admissions: Vec<Admission> = std::iter::from_fn(|| gate.admit("k", now).ok()).take(64).collect();
        assert!(admissions.len() >= (1 << round).min(64), "round {round}: {}", admissions.len());
        for mut admission in admissions {
            gate.taken("k", &mut admission);
            gate.ended("k", &admission, false, now);
        }
    }
}

/// A queue with room for so many, served at a steady rate, and clients who want three times of that.
struct Queue {
    waiting: VecDeque<(usize, Admission)>,
    room: usize,
    refused: usize,
}

impl Queue {
    fn offer(&mut self, client: usize, gate: &mut Gate, now: Instant) {
        let Ok(mut admission) = gate.admit("k", now) else { return };
        if self.waiting.len() < self.room {
            gate.taken("k", &mut admission);
            self.waiting.push_back((client, admission));
        } else {
            self.refused += 1;
            gate.refused("k", &mut admission, now, 0.5);
            gate.ended("k", &admission, false, now);
        }
    }
}

#[test]
fn a_flood_keeps_the_queue_fed_and_the_broker_from_refusing() {
    let mut queue = Queue { waiting: VecDeque::new(), room: 500, refused: 0 };
    let mut gates = [Gate::default(), Gate::default()];
    let start = Instant::now();
    let (mut served, mut idle, mut offered) = ([0usize; 2], 0, 0);
    for tick in 0..30_000u32 {
        let now = start + MS * tick;
        for (client, gate) in gates.iter_mut().enumerate() {
            // One begins later, and finds the queue full.
            if client == 0 || tick > 5_000 {
                (0..2).for_each(|_| queue.offer(client, gate, now));
                offered += 2;
            }
        }
        match queue.waiting.pop_front() {
            Some((client, admission)) => {
                gates[client].ended("k", &admission, true, now);
                served[client] += 1;
            }
            None => idle += 1,
        }
    }
    assert!(idle < 100, "idle {idle} of 30,000");
    assert!(queue.refused * 50 < offered, "{} of {offered} refused by the broker", queue.refused);
    assert!(served[1] * 4 > served[0], "the later one got {served:?}");
}
