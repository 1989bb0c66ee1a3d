//! The gate: after the broker refused a request of a model and tier because their queue is full, further ones are answered
//! here until it is worth trying again. Refusing must not cost broker and fleet what serving would. Plain code.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The first pause; each refused probe doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a probe may stay without an answer before another is let through.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Which queues are believed full, by routing key.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: HashMap<String, Closed>,
}

#[derive(Debug)]
struct Closed {
    refusals: u32,
    until: Instant,
}

impl Gate {
    /// Lets a request pass, or says when it is worth trying again.
    ///
    /// Once the pause is over one request passes as a probe, while the others are still held back.
    ///
    /// # Errors
    /// The pause left.
    pub(crate) fn admit(&mut self, key: &str, now: Instant) -> Result<(), Duration> {
        let Some(closed) = self.closed.get_mut(key) else { return Ok(()) };
        let left = closed.until.saturating_duration_since(now);
        if !left.is_zero() {
            return Err(left);
        }
        closed.until = now + PROBE_PATIENCE;
        Ok(())
    }

    /// The pause left, while there is one.
    pub(crate) fn pause(&self, key: &str, now: Instant) -> Option<Duration> {
        let left = self.closed.get(key)?.until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// The broker refused a request. `jitter`, from 0 to 1, keeps clients from probing all at once. Returns the pause.
    ///
    /// Refusals of what was on its way when the gate closed say nothing new.
    pub(crate) fn refused(&mut self, key: &str, now: Instant, is_probe: bool, jitter: f64) -> Duration {
        let closed = self.closed.entry(key.to_owned()).or_insert(Closed { refusals: 0, until: now });
        if is_probe || closed.refusals == 0 {
            let pause = FIRST_PAUSE.saturating_mul(1 << closed.refusals.min(16)).min(LONGEST_PAUSE);
            closed.refusals += 1;
            closed.until = now + pause.mul_f64(0.75 + jitter / 2.0);
        }
        closed.until.saturating_duration_since(now).max(FIRST_PAUSE)
    }

    /// A probe ended without the broker's word; another may pass.
    pub(crate) fn abandoned(&mut self, key: &str, now: Instant) {
        if let Some(closed) = self.closed.get_mut(key) {
            closed.until = now;
        }
    }

    /// The broker took a request: there is room.
    pub(crate) fn taken(&mut self, key: &str) {
        self.closed.remove(key);
    }

    /// Whether a request of this key that passes now is a probe.
    pub(crate) fn is_closed(&self, key: &str) -> bool {
        self.closed.contains_key(key)
    }

    /// Whether no queue is believed full.
    pub(crate) fn is_open(&self) -> bool {
        self.closed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_probe_passes_after_each_pause_and_pauses_grow() {
        let mut gate = Gate::default();
        let mut now = Instant::now();
        assert_eq!(gate.admit("m.free", now), Ok(()));
        let mut pauses = Vec::new();
        let mut is_probe = false;
        for _ in 0..8 {
            let pause = gate.refused("m.free", now, is_probe, 0.5);
            pauses.push(pause);
            assert_eq!(gate.admit("m.free", now), Err(pause), "{pauses:?}");
            assert_eq!(gate.admit("m.premium", now), Ok(()), "another queue is another matter");
            now += pause;
            assert_eq!(gate.admit("m.free", now), Ok(()));
            assert_eq!(gate.admit("m.free", now), Err(PROBE_PATIENCE), "one probe at a time");
            is_probe = true;
        }
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert_eq!(pauses[7], LONGEST_PAUSE);
        gate.taken("m.free");
        assert!(gate.is_open());
        assert_eq!(gate.admit("m.free", now), Ok(()));
    }

    #[test]
    fn what_was_on_its_way_says_nothing_new() {
        let mut gate = Gate::default();
        let now = Instant::now();
        gate.refused("k", now, false, 0.0);
        let until = gate.admit("k", now);
        gate.refused("k", now, false, 1.0);
        assert_eq!(gate.admit("k", now), until);
        // Nor does it invite to try again at once.
        assert_eq!(gate.refused("k", now + PROBE_PATIENCE, false, 1.0), FIRST_PAUSE);
    }

    #[test]
    fn a_probe_that_gets_lost_is_followed_by_another() {
        let mut gate = Gate::default();
        let now = Instant::now();
        let pause = gate.refused("k", now, false, 0.0);
        assert!(gate.admit("k", now + pause).is_ok());
        assert!(gate.admit("k", now + pause + PROBE_PATIENCE).is_ok());
        gate.abandoned("k", now);
        assert!(gate.admit("k", now).is_ok(), "it is known to have come to nothing");
    }
}
