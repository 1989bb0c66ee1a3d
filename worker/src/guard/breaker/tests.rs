//! What a breaker lets through.

use proptest::prelude::*;

use super::*;

const WAIT: Duration = Duration::from_secs(10);
const OK: Calls = Calls { answered: 1, failed: 0, are_slow: false };
const FAILED: Calls = Calls { answered: 0, failed: 1, are_slow: false };
const SLOW: Calls = Calls { answered: 1, failed: 0, are_slow: true };

fn breaker(now: Instant) -> Breaker {
    let config = BreakerConfig {
        sliding_window_size: 10,
        minimum_number_of_calls: 4,
        permitted_number_of_calls_in_half_open_state: 3,
        ..BreakerConfig::default()
    };
    config.validate().unwrap();
    Breaker::new(config, now)
}

fn record(breaker: &mut Breaker, calls: &[Calls], now: Instant) -> Option<State> {
    let transitions = calls.iter().map(|calls| breaker.record(*calls, now));
    transitions.last().flatten().map(|transition| transition.to)
}

#[test]
fn it_opens_at_its_thresholds_and_not_before_enough_calls() {
    let now = Instant::now();
    assert_eq!(record(&mut breaker(now), &[FAILED; 3], now), None);
    assert_eq!(record(&mut breaker(now), &[FAILED; 4], now), Some(State::Open));
    assert_eq!(record(&mut breaker(now), &[OK, OK, OK, FAILED, FAILED], now), None);
    assert_eq!(record(&mut breaker(now), &[OK, OK, FAILED, FAILED], now), Some(State::Open));
    assert_eq!(record(&mut breaker(now), &[SLOW; 4], now), Some(State::Open));
    assert_eq!(record(&mut breaker(now), &[SLOW, SLOW, SLOW, OK], now), None);
    let together = Calls { answered: 3, failed: 3, are_slow: false };
    assert_eq!(record(&mut breaker(now), &[together], now), Some(State::Open));
    let off = BreakerConfig { enabled: false, ..breaker(now).config };
    assert_eq!(record(&mut Breaker::new(off, now), &[FAILED; 10], now), None);
}

#[test]
fn it_lets_a_few_through_after_its_wait_and_closes_by_them() {
    let now = Instant::now();
    let mut breaker = breaker(now);
    record(&mut breaker, &[FAILED; 4], now);
    assert!(breaker.refuses(now) && !breaker.permits(1, now).0);
    assert_eq!(breaker.retry_after(now + WAIT / 2), WAIT / 2);
    let later = now + WAIT;
    assert!(!breaker.refuses(later));
    let (is_permitted, transition) = breaker.permits(2, later);
    assert!(is_permitted);
    assert_eq!(transition.map(|transition| transition.to), Some(State::HalfOpen));
    assert!(breaker.permits(2, later).0, "begun with one to spare");
    assert!(breaker.refuses(later) && !breaker.permits(1, later).0);
    assert_eq!(record(&mut breaker, &[OK, OK, OK], later), Some(State::Closed));
    assert!(breaker.permits(100, later).0);
}

#[test]
fn it_opens_again_by_those_that_fail_and_forgives_those_that_never_end() {
    let now = Instant::now();
    let mut breaker = breaker(now);
    record(&mut breaker, &[FAILED; 4], now);
    let later = now + WAIT;
    breaker.permits(3, later);
    assert_eq!(record(&mut breaker, &[OK, FAILED, FAILED], later), Some(State::Open));
    let again = later + WAIT;
    assert!(breaker.permits(3, again).0);
    assert!(!breaker.permits(1, again).0, "they are on their way");
    assert!(breaker.permits(3, again + WAIT).0, "they never ended");
}

proptest! {
    /// Whatever happens: closed it refuses nothing, open everything until the wait is over, and it is never stuck.
    #[test]
    fn it_is_never_stuck(events in prop::collection::vec((0u32..3, 0u32..3, any::<bool>(), 0u64..6), 1..300)) {
        let mut now = Instant::now();
        let mut breaker = breaker(now);
        for (answered, failed, are_slow, seconds) in events {
            now += Duration::from_secs(seconds);
            let refuses = breaker.refuses(now);
            prop_assert!(!(refuses && breaker.state() == State::Closed));
            prop_assert!(refuses || breaker.retry_after(now).is_zero() || breaker.state() != State::Open);
            let (is_permitted, _) = breaker.permits(answered + failed, now);
            prop_assert_eq!(is_permitted, !refuses);
            if is_permitted {
                breaker.record(Calls { answered, failed, are_slow }, now);
            }
        }
        now += WAIT;
        prop_assert!(breaker.permits(3, now).0);
        prop_assert!(breaker.state() != State::Open);
    }
}

#[test]
fn what_is_forced_goes_before_what_calls_say() {
    let now = Instant::now();
    let mut breaker = breaker(now);
    assert!(breaker.force(Some(Forced::ForcedOpen), now) && !breaker.force(Some(Forced::ForcedOpen), now));
    assert_eq!((breaker.status(), breaker.pause(now + WAIT)), ("forced_open", Some(WAIT)));
    assert_eq!(breaker.permits(1, now + WAIT), (false, None));
    assert!(breaker.force(Some(Forced::Disabled), now));
    assert_eq!(record(&mut breaker, &[FAILED; 10], now), None);
    assert!(breaker.permits(1, now).0 && breaker.status() == "disabled");
    assert!(breaker.force(None, now));
    assert_eq!(
        (breaker.status(), record(&mut breaker, &[FAILED; 3], now)),
        ("closed", None),
        "it begins anew"
    );
    assert_eq!(record(&mut breaker, &[FAILED], now), Some(State::Open));
}
