//! Runs that do not end: stopped where the back end can, else found hung. Plain data and a lock; `now` is a parameter.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A back end that has not obeyed for so long is hung: ONNX Runtime looks between two nodes of the graph, and one takes seconds
/// at most.
const OBEYS_WITHIN: Duration = Duration::from_secs(5);

/// Ends a back end's runs from another thread.
pub trait Stopper: Send + Sync {
    /// Ends the run under way as soon as the back end can, and every one that begins before [`Stopper::allow`].
    fn stop(&self);
    /// Lets runs begin again.
    fn allow(&self);
}

/// One instance's runs.
pub struct Watch {
    stopper: Box<dyn Stopper>,
    run: Mutex<Option<Run>>,
}

struct Run {
    began: Instant,
    limit: Duration,
    /// When it was told to stop.
    stopped: Option<Instant>,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing runs, or not for too long.
    Fine,
    /// A run that takes too long; it was told to stop by this look.
    Late,
    /// A run that did not obey. Nothing but the end of the process ends it.
    Hung,
}

impl Watch {
    /// Over a back end, which `stopper` stops.
    pub fn new(stopper: Box<dyn Stopper>) -> Self {
        Self { stopper, run: Mutex::new(None) }
    }

    /// A run begins that may take `limit`.
    pub fn begin(&self, limit: Duration, now: Instant) {
        *self.lock() = Some(Run { began: now, limit, stopped: None });
    }

    /// The run has ended. Returns whether it was told to.
    pub fn end(&self) -> bool {
        let was_stopped = self.lock().take().is_some_and(|run| run.stopped.is_some());
        if was_stopped {
            self.stopper.allow();
        }
        was_stopped
    }

    /// Looks at what runs.
    pub fn look(&self, now: Instant) -> Found {
        // Held while the back end is told, so that it is not told of the next run.
        let mut run = self.lock();
        let Some(run) = run.as_mut() else { return Found::Fine };
        match run.stopped {
            None if now.saturating_duration_since(run.began) < run.limit => Found::Fine,
            None => {
                self.stopper.stop();
                run.stopped = Some(now);
                Found::Late
            }
            // From then on, so that a process that did not run for a while finds nothing hung.
            Some(stopped) if now.saturating_duration_since(stopped) < OBEYS_WITHIN => Found::Fine,
            Some(_) => Found::Hung,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Run>> {
        // Single assignments; a panic cannot leave it half changed.
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<&'static str>>>);

    impl Told {
        fn take(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Stopper for Told {
        fn stop(&self) {
            self.0.lock().unwrap().push("stop");
        }
        fn allow(&self) {
            self.0.lock().unwrap().push("allow");
        }
    }

    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn a_late_run_is_stopped_once_and_hung_if_it_does_not_obey() {
        let told = Told::default();
        let watch = Watch::new(Box::new(told.clone()));
        let begin = Instant::now();
        let after = |secs: u64| watch.look(begin + Duration::from_secs(secs));
        assert_eq!(after(100), Found::Fine, "nothing runs");
        watch.begin(TIMEOUT, begin);
        assert_eq!(
            [1, 10, 11, 14, 15].map(after),
            [Found::Fine, Found::Late, Found::Fine, Found::Fine, Found::Hung],
            "it has its time to obey, however late it was told"
        );
        assert_eq!(told.take(), ["stop"]);
        assert!(watch.end());
        assert_eq!(told.take(), ["allow"]);
        watch.begin(TIMEOUT, begin + Duration::from_secs(15));
        assert_eq!(after(16), Found::Fine, "the next run is another");
        assert!(!watch.end());
        assert!(told.take().is_empty());
    }
}
