//! A broker that outlives the process that started it, on purpose.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::KILLED;
use crate::process::ProcessId;

/// A node that was left running on purpose; enough to find and stop it from another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DetachedBroker {
    pub amqp_url: String,
    pub management_url: String,
    pub version: String,
    pub directory: PathBuf,
    pub(super) supervisor: ProcessId,
    pub(super) node: ProcessId,
}

impl DetachedBroker {
    pub fn is_running(&self) -> bool {
        self.node.is_running()
    }

    /// Kills node and epmd and removes the data.
    ///
    /// # Errors
    /// When they are not gone within 10 s, or the directory cannot be removed.
    pub fn stop(&self) -> Result<()> {
        self.supervisor.signal(Signal::SIGTERM);
        ensure!(
            self.supervisor.wait(KILLED) && self.node.wait(KILLED),
            "the broker (pid {}) did not stop",
            self.node.pid()
        );
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }
}
