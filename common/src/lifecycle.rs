//! Stopping a process in order: one token that says "stop", one tracker that knows every task.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Tells tasks to stop and waits until they have. Cheap to clone; all clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A lifecycle that is running and tracks no task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A lifecycle that is stopped with this one, but can be stopped and waited for alone.
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), tasks: TaskTracker::new() }
    }

    /// Spawns a task that [`Self::stopped`] waits for.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Asks every task to finish its unit of work and end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Completes when a stop is asked for. Cancel safe.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Waits until every spawned task has ended, at most `grace`. Returns how many tasks are left.
    pub async fn stopped(&self, grace: Duration) -> usize {
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            return self.tasks.len();
        }
        0
    }
}

/// Completes at the first SIGTERM (orchestrators) or SIGINT (Ctrl-C). A second one ends the process at once, status 130.
///
/// Nothing is lost by the hard end: what is not acknowledged is delivered again.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub async fn stop_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = name, "stopping; a second signal ends the process at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        warn!("second signal, ending at once");
        std::process::exit(130);
    });
    Ok(())
}
