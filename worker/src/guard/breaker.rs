//! A circuit breaker: a model that fails is left alone for a while. Plain code; `now` is a parameter.
//!
//! Terms, meanings and defaults are Resilience4j's, but for the wait in the open state. A call is a request that was run. One that
//! fails while others of its batch are answered is its own fault, and no call at all: nobody can open the breaker with bad input
//! as long as others are served.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::within;
use serde::Deserialize;

/// `[circuit_breaker]` of a model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Percent of failed calls from which it opens.
    pub failure_rate_threshold: u32,
    /// Percent of slow calls from which it opens.
    pub slow_call_rate_threshold: u32,
    /// How long a run takes whose calls are slow.
    pub slow_call_duration_threshold_ms: u64,
    /// The last calls that count.
    pub sliding_window_size: u32,
    /// Calls before which it never opens.
    pub minimum_number_of_calls: u32,
    /// How long it stays open.
    pub wait_duration_in_open_state_ms: u64,
    /// Calls after that which decide whether it closes.
    pub permitted_number_of_calls_in_half_open_state: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_rate_threshold: 50,
            slow_call_rate_threshold: 100,
            slow_call_duration_threshold_ms: 60_000,
            sliding_window_size: 100,
            minimum_number_of_calls: 100,
            wait_duration_in_open_state_ms: 10_000,
            permitted_number_of_calls_in_half_open_state: 10,
        }
    }
}

impl Validate for BreakerConfig {
    fn validate(&self) -> Result<(), Invalid> {
        let key = |name: &str| format!("circuit_breaker.{name}");
        let window = u64::from(self.sliding_window_size);
        within(&key("failure_rate_threshold"), self.failure_rate_threshold.into(), 1, 100)?;
        within(&key("slow_call_rate_threshold"), self.slow_call_rate_threshold.into(), 1, 100)?;
        within(&key("slow_call_duration_threshold_ms"), self.slow_call_duration_threshold_ms, 1, 86_400_000)?;
        within(&key("sliding_window_size"), window, 1, 100_000)?;
        within(&key("minimum_number_of_calls"), self.minimum_number_of_calls.into(), 1, window)?;
        within(&key("wait_duration_in_open_state_ms"), self.wait_duration_in_open_state_ms, 1, 86_400_000)?;
        let permitted = self.permitted_number_of_calls_in_half_open_state;
        within(&key("permitted_number_of_calls_in_half_open_state"), permitted.into(), 1, 100_000)
    }
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All calls.
    Closed,
    /// None.
    Open,
    /// A few, to see whether they succeed.
    HalfOpen,
}

impl State {
    /// As in status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Calls that ended together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Answered.
    pub answered: u32,
    /// Failed.
    pub failed: u32,
    /// Whether they were slow.
    pub are_slow: bool,
}

/// A change of state, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Percent of the calls that decided it.
    pub failure_rate: f32,
    /// Percent of the calls that decided it.
    pub slow_call_rate: f32,
}

/// One model version's breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    /// When the state began.
    since: Instant,
    window: Window,
    /// Calls let through in the half-open state.
    permitted: u32,
}

impl Breaker {
    /// A closed one.
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        let window = Window::new(config.sliding_window_size);
        Self { config, state: State::Closed, since: now, window, permitted: 0 }
    }

    /// What it lets through.
    pub fn state(&self) -> State {
        self.state
    }

    /// From how long a run's calls are slow.
    pub fn slow_from(&self) -> Duration {
        Duration::from_millis(self.config.slow_call_duration_threshold_ms)
    }

    /// How long it stays as it is: calls before that are in vain.
    pub fn retry_after(&self, now: Instant) -> Duration {
        self.wait().saturating_sub(now.saturating_duration_since(self.since))
    }

    /// Whether a call would be refused now.
    pub fn refuses(&self, now: Instant) -> bool {
        let is_over = self.retry_after(now).is_zero();
        match self.state {
            State::Closed => false,
            State::Open => !is_over,
            // Calls that were let through and never ended, as those that expired, must not keep it so.
            State::HalfOpen => self.permitted >= self.most_permitted() && !is_over,
        }
    }

    /// How long calls are refused, if they are now.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        self.refuses(now).then(|| self.retry_after(now))
    }

    /// Whether these calls may run now, all of them or none. The first ones after the wait make it half-open.
    pub fn permits(&mut self, calls: u32, now: Instant) -> (bool, Option<Transition>) {
        if self.state == State::Closed {
            return (true, None);
        }
        if self.refuses(now) {
            return (false, None);
        }
        let from = self.state;
        if from == State::Open || self.permitted >= self.most_permitted() {
            self.begin(State::HalfOpen, self.most_permitted(), now);
        }
        self.permitted = self.permitted.saturating_add(calls);
        let transition = Transition { from, to: State::HalfOpen, failure_rate: 0.0, slow_call_rate: 0.0 };
        (true, (from == State::Open).then_some(transition))
    }

    /// Takes how calls ended.
    pub fn record(&mut self, calls: Calls, now: Instant) -> Option<Transition> {
        if !self.config.enabled || self.state == State::Open {
            return None;
        }
        self.window.push(calls);
        let enough = match self.state {
            State::HalfOpen => self.most_permitted(),
            _ => self.config.minimum_number_of_calls,
        };
        if self.window.calls() < enough {
            return None;
        }
        let (failure_rate, slow_call_rate) = self.window.rates();
        let is_bad = failure_rate >= self.config.failure_rate_threshold as f32
            || slow_call_rate >= self.config.slow_call_rate_threshold as f32;
        let to = match (self.state, is_bad) {
            (_, true) => State::Open,
            (State::HalfOpen, false) => State::Closed,
            (state, false) => state,
        };
        let from = self.state;
        if from == to {
            return None;
        }
        self.begin(to, self.config.sliding_window_size, now);
        Some(Transition { from, to, failure_rate, slow_call_rate })
    }

    fn begin(&mut self, state: State, window: u32, now: Instant) {
        (self.state, self.since, self.permitted) = (state, now, 0);
        self.window = Window::new(window);
    }

    fn wait(&self) -> Duration {
        Duration::from_millis(self.config.wait_duration_in_open_state_ms)
    }

    fn most_permitted(&self) -> u32 {
        self.config.permitted_number_of_calls_in_half_open_state
    }
}

/// The last calls.
#[derive(Debug)]
struct Window {
    size: usize,
    /// Whether each failed, and was slow.
    calls: VecDeque<(bool, bool)>,
    failed: u32,
    slow: u32,
}

impl Window {
    fn new(size: u32) -> Self {
        Self { size: size as usize, calls: VecDeque::new(), failed: 0, slow: 0 }
    }

    fn push(&mut self, Calls { answered, failed, are_slow }: Calls) {
        let each = [(answered, false), (failed, true)];
        for (count, has_failed) in each {
            // More than the window holds would only push each other out.
            for _ in 0..count.min(u32::try_from(self.size).unwrap_or(u32::MAX)) {
                if self.calls.len() == self.size
                    && let Some((failed, slow)) = self.calls.pop_front()
                {
                    self.failed -= u32::from(failed);
                    self.slow -= u32::from(slow);
                }
                self.calls.push_back((has_failed, are_slow));
                self.failed += u32::from(has_failed);
                self.slow += u32::from(are_slow);
            }
        }
    }

    fn calls(&self) -> u32 {
        u32::try_from(self.calls.len()).unwrap_or(u32::MAX)
    }

    /// Percent failed, and slow.
    fn rates(&self) -> (f32, f32) {
        let percent = |count: u32| 100.0 * count as f32 / self.calls().max(1) as f32;
        (percent(self.failed), percent(self.slow))
    }
}

#[cfg(test)]
mod tests {
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
}
