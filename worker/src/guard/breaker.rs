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
use millrace_common::switches::Forced;
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
    /// What an operator wants of it for now, whatever calls say.
    forced: Option<Forced>,
}

impl Breaker {
    /// A closed one.
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        let window = Window::new(config.sliding_window_size);
        Self { config, state: State::Closed, since: now, window, permitted: 0, forced: None }
    }

    /// What it lets through, by what calls say.
    pub fn state(&self) -> State {
        self.state
    }

    /// As in status: the state, or what is forced.
    pub fn status(&self) -> &'static str {
        self.forced.map_or(self.state.as_str(), Forced::as_str)
    }

    /// Does what an operator wants until told otherwise, and then begins anew. Returns whether that is another thing than before.
    pub fn force(&mut self, forced: Option<Forced>, now: Instant) -> bool {
        if self.forced == forced {
            return false;
        }
        self.forced = forced;
        self.begin(State::Closed, self.config.sliding_window_size, now);
        true
    }

    /// Whether an operator wants it open.
    pub fn is_forced_open(&self) -> bool {
        self.forced == Some(Forced::ForcedOpen)
    }

    /// From how long a run's calls are slow.
    pub fn slow_from(&self) -> Duration {
        Duration::from_millis(self.config.slow_call_duration_threshold_ms)
    }

    /// How long it stays as it is: calls before that are in vain.
    pub fn retry_after(&self, now: Instant) -> Duration {
        if self.is_forced_open() {
            // Nobody knows; not at once.
            return self.wait();
        }
        self.wait().saturating_sub(now.saturating_duration_since(self.since))
    }

    /// Whether a call would be refused now.
    pub fn refuses(&self, now: Instant) -> bool {
        if let Some(forced) = self.forced {
            return forced == Forced::ForcedOpen;
        }
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
        if self.refuses(now) {
            return (false, None);
        }
        if self.state == State::Closed {
            return (true, None);
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
        if !self.config.enabled || self.forced.is_some() || self.state == State::Open {
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

    /// How long it stays open; what to wait for whoever does not know more.
    pub fn wait(&self) -> Duration {
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
mod tests;
