//! The gate: once the broker has refused a request of a model and tier because their queue is full, no more of them are let
//! through than its answers make room for; the others are answered here, at once. Refusing must not cost broker and fleet what
//! serving would, and what is let through must not come in gusts. Plain code; `now` is a parameter.
//!
//! It is the congestion window of TCP: cut when something is refused, a little larger with each answer. Source: V. Jacobson,
//! "Congestion Avoidance and Control", SIGCOMM 1988.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a refusal leaves of the window: of what is in the queue, or on its way through the fleet.
const CUT: f64 = 0.7;
/// The window grows by this while it is answered once, a small one by less. The same for all, so that clients come to share alike.
const GROWTH: f64 = 8.0;
/// The window behind the first request that is taken after a pause; it doubles while it is answered once.
const FIRST_WINDOW: f64 = 8.0;
/// The first pause; each refused probe doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a probe may stay without an answer before another is let through.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// A window that has held nothing back for so long is no more.
const QUIET: Duration = Duration::from_secs(10);
/// Weight of a new measurement in the time that an answer takes.
const WEIGHT: f64 = 0.1;

/// The queues that requests are on their way through, by routing key.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    flows: HashMap<String, Flow>,
}

#[derive(Debug)]
struct Flow {
    /// Requests let through that have no answer, and those of them that the broker has taken.
    open: u64,
    taken: u64,
    /// How many may be open; `None` while nothing was refused.
    window: Option<Window>,
    /// Seconds that an answer takes, of late.
    answer_s: Option<f64>,
}

#[derive(Debug)]
struct Window {
    size: f64,
    /// How often it was cut: what was let through before the last time says nothing new.
    cuts: u64,
    /// Nothing of this client is in the queue: only time can tell when there is room. Refused probes, and when the next may go.
    pause: Option<(u32, Instant)>,
    /// Whether it doubles: nothing was refused since the last pause.
    is_young: bool,
    /// When it last held something back.
    held: Instant,
}

/// A request's way through the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    cuts: u64,
    is_probe: bool,
    since: Instant,
    is_taken: bool,
}

impl Gate {
    /// Lets a request pass, or says when it is worth trying again. Whoever passes is to come to [`Gate::ended`].
    ///
    /// Where time alone can tell, one request passes as a probe once the pause is over, while the others are still held back.
    ///
    /// # Errors
    /// The time after which another try makes sense.
    pub(crate) fn admit(&mut self, key: &str, now: Instant) -> Result<Admission, Duration> {
        let Some(flow) = self.flows.get_mut(key) else {
            self.flows.insert(key.to_owned(), Flow { open: 1, taken: 0, window: None, answer_s: None });
            return Ok(Admission { cuts: 0, is_probe: false, since: now, is_taken: false });
        };
        flow.forget(now);
        let retry_after = flow.retry_after();
        let mut admission = Admission { cuts: 0, is_probe: false, since: now, is_taken: false };
        if let Some(window) = &mut flow.window {
            admission.cuts = window.cuts;
            if let Some((_, until)) = &mut window.pause {
                let left = until.saturating_duration_since(now);
                if !left.is_zero() {
                    window.held = now;
                    return Err(left);
                }
                *until = now + PROBE_PATIENCE;
                admission.is_probe = true;
            } else if flow.open as f64 >= window.size {
                window.held = now;
                return Err(retry_after);
            }
        }
        flow.open += 1;
        Ok(admission)
    }

    /// Whether a request that has passed is to be held back after all, before it is sent: those before it were refused meanwhile.
    pub(crate) fn holds_back(&self, key: &str, admission: &Admission, now: Instant) -> Option<Duration> {
        let flow = self.flows.get(key)?;
        let window =
            flow.window.as_ref().filter(|window| window.cuts != admission.cuts && !admission.is_probe)?;
        match window.pause {
            Some((_, until)) => Some(until.saturating_duration_since(now).max(FIRST_PAUSE)),
            None => (flow.open as f64 > window.size).then(|| flow.retry_after()),
        }
    }

    /// Whether a request of this key would be held back now, or let through as a probe.
    pub(crate) fn is_closed(&self, key: &str) -> bool {
        let flow = self.flows.get(key);
        flow.is_some_and(|flow| {
            let is_closed = |window: &Window| window.pause.is_some() || flow.open as f64 >= window.size;
            flow.window.as_ref().is_some_and(is_closed)
        })
    }

    /// The broker refused a request. `jitter`, from 0 to 1, keeps clients from probing all at once. Returns when to try again.
    pub(crate) fn refused(
        &mut self,
        key: &str,
        admission: &mut Admission,
        now: Instant,
        jitter: f64,
    ) -> Duration {
        let Some(flow) = self.flows.get_mut(key) else { return FIRST_PAUSE };
        let retry_after = flow.retry_after();
        let pause = |refusals: u32| {
            let pause = FIRST_PAUSE.saturating_mul(1 << refusals.min(16)).min(LONGEST_PAUSE);
            Some((refusals + 1, now + pause.mul_f64(0.75 + jitter / 2.0)))
        };
        let (taken, is_new) = (flow.taken, flow.window.is_none());
        let window = flow.window.get_or_insert(Window {
            size: FIRST_WINDOW,
            cuts: 0,
            pause: None,
            is_young: false,
            held: now,
        });
        window.held = now;
        if std::mem::take(&mut admission.is_probe) {
            window.cuts += 1;
            window.pause = pause(window.pause.map_or(0, |(refusals, _)| refusals));
        } else if admission.cuts == window.cuts || is_new {
            window.cuts += 1;
            window.is_young = false;
            window.size = (taken as f64 * CUT).max(1.0);
            if taken == 0 {
                window.pause = pause(0);
            }
        }
        match window.pause {
            Some((_, until)) => until.saturating_duration_since(now).max(FIRST_PAUSE),
            None => retry_after,
        }
    }

    /// The broker took a request. Where that was a probe there is room again.
    pub(crate) fn taken(&mut self, key: &str, admission: &mut Admission) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if !std::mem::replace(&mut admission.is_taken, true) {
            flow.taken += 1;
        }
        if let Some(window) = flow.window.as_mut().filter(|_| std::mem::take(&mut admission.is_probe)) {
            window.pause = None;
            window.is_young = true;
            window.size = FIRST_WINDOW;
        }
    }

    /// A request that had passed has ended: answered, refused, or given up by its caller, who may never have wanted an answer. A
    /// probe that ended without the broker's word makes room for another.
    pub(crate) fn ended(&mut self, key: &str, admission: &Admission, is_answered: bool, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.open = flow.open.saturating_sub(1);
        flow.taken = flow.taken.saturating_sub(admission.is_taken.into());
        if is_answered {
            let took = now.saturating_duration_since(admission.since).as_secs_f64();
            flow.answer_s = Some(flow.answer_s.map_or(took, |known| known + WEIGHT * (took - known)));
        }
        if let Some(window) = &mut flow.window {
            match &mut window.pause {
                Some((_, until)) if admission.is_probe && !admission.is_taken => *until = (*until).min(now),
                Some(_) => {}
                None if is_answered || admission.is_taken => {
                    let growth =
                        if window.is_young { window.size } else { GROWTH.min(1.0 + window.size / 8.0) };
                    window.size += growth / window.size;
                }
                None => {}
            }
        }
        flow.forget(now);
        if flow.open == 0 && flow.window.is_none() {
            self.flows.remove(key);
        }
    }
}

impl Flow {
    /// Drops a window that has held nothing back for long.
    fn forget(&mut self, now: Instant) {
        let Some(window) = &self.window else { return };
        let rests = window.pause.map_or(window.held, |(_, until)| until);
        if now.saturating_duration_since(rests) > QUIET {
            self.window = None;
        }
    }

    /// About as long as those take that have passed.
    fn retry_after(&self) -> Duration {
        self.answer_s.map_or(FIRST_PAUSE, Duration::from_secs_f64).clamp(FIRST_PAUSE, LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests;
