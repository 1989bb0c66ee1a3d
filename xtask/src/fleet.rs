//! Release binaries and workers, for `up` and `demo`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_harness::process::Process;
use millrace_harness::setup;

use crate::workspace;

/// Loading a model takes a second or two, a cold disk more.
const READY: Duration = Duration::from_secs(30);
/// What a worker's log says, at level INFO, once it consumes; its models say "model ready" before.
const READY_LINE: &str = "INFO ready";

/// Builds the worker and the `millrace` command; returns their directory.
pub(crate) fn build() -> Result<PathBuf> {
    workspace::build(&["--release", "-p", "millrace-worker", "-p", "millrace-cli"])?;
    Ok(workspace::target()?.join("release"))
}

/// What all workers of a fleet share.
pub(crate) struct Fleet {
    pub(crate) binaries: PathBuf,
    pub(crate) amqp_url: String,
    pub(crate) models: PathBuf,
    pub(crate) logs: PathBuf,
}

impl Fleet {
    /// Starts `count` workers and returns when all consume. All or none: those started are stopped if one fails.
    pub(crate) fn start(&self, count: u16) -> Result<Vec<Process>> {
        ensure!(
            self.models.is_dir(),
            "there is no model repository {}; name one with --models",
            self.models.display()
        );
        let library = setup::onnxruntime()?;
        let mut workers = (1..=count)
            .map(|number| {
                let mut command = Command::new(self.binaries.join("millrace-worker"));
                command
                    .env("MILLRACE_AMQP_URL", &self.amqp_url)
                    .env("MILLRACE__MODELS__REPOSITORY", &self.models)
                    .env("MILLRACE__LOGS__FORMAT", "text")
                    .env(setup::LIBRARY_VARIABLE, &library);
                Process::spawn_with_logs(command, &self.logs, &log_name(number))
            })
            .collect::<Result<Vec<_>>>()?;
        for (index, worker) in workers.iter_mut().enumerate() {
            worker.wait_for_line(READY_LINE, READY).with_context(|| {
                format!(
                    "worker {} did not get ready (logs: {}; RUST_LOG must let INFO through)",
                    index + 1,
                    self.logs.display()
                )
            })?;
        }
        Ok(workers)
    }
}

pub(crate) fn log_name(number: u16) -> String {
    format!("worker-{number}")
}

/// The models that come with this repository.
pub(crate) fn own_models() -> PathBuf {
    workspace::root().join("compose/models")
}
