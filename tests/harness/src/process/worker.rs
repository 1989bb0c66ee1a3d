//! A worker, as one starts it in production: the binary, arguments, environment.

use std::ops::{Deref, DerefMut};
use std::process::Command;

use anyhow::Result;

use super::{Process, binary};

/// A `millrace-worker`; see [`Process`] for what it can do.
pub struct WorkerProcess(Process);

impl WorkerProcess {
    /// Starts a worker with the given arguments and, beside the inherited ones, environment variables.
    ///
    /// # Errors
    /// When the binary is not built or does not start.
    pub fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        Self::spawn_as("millrace-worker", arguments, environment)
    }

    /// As [`WorkerProcess::spawn`], with a binary that works as the worker's does.
    ///
    /// # Errors
    /// As [`WorkerProcess::spawn`].
    pub fn spawn_as(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(binary(name)?);
        command.args(arguments).envs(environment.iter().copied());
        Process::spawn(command).map(Self)
    }
}

impl Deref for WorkerProcess {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for WorkerProcess {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}
