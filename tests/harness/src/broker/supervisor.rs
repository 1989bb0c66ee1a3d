//! The process between a broker and its owner: it sees the owner's end, in whatever way that comes, as the end of a pipe.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::node::Node;
use crate::process::ProcessId;

const SCRIPT: &str = include_str!("supervisor.sh");
const NODE_START: Duration = Duration::from_secs(15);

pub(super) struct Supervisor {
    process: Child,
    commands: Option<ChildStdin>,
    /// Without a name: the supervisor deletes the node's directory before we could ask why it stopped.
    log: File,
}

impl Supervisor {
    pub(super) fn start(node: &Node) -> Result<Self> {
        let log = tempfile::tempfile()?;
        let mut process = node
            .supervisor(SCRIPT)?
            .stdin(Stdio::piped())
            // Never our own output: whoever reads it would wait for the broker's end.
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot run sh")?;
        Ok(Self { commands: process.stdin.take(), process, log })
    }

    /// Starts the Erlang VM and returns at once with its pid.
    pub(super) fn start_node(&mut self, node: &Node) -> Result<ProcessId> {
        let pid_file = node.dir.join("node.pid");
        let _ = fs::remove_file(&pid_file);
        self.command("start")?;
        let deadline = Instant::now() + NODE_START;
        while Instant::now() < deadline {
            if let Ok(pid) = fs::read_to_string(&pid_file) {
                return ProcessId::of(pid.trim().parse()?)
                    .with_context(|| format!("the node ended at once:\n{}", node.log_tail()));
            }
            if self.process.try_wait()?.is_some() {
                bail!("the broker's supervisor stopped: {}", self.log_text());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the broker's supervisor starts no node: {}", self.log_text())
    }

    /// Lets the node outlive us; returns the process to stop (SIGTERM) in the end.
    pub(super) fn detach(mut self) -> Result<ProcessId> {
        self.command("detach")?;
        let id = self.id().context("the broker's supervisor is gone")?;
        // The pipe's end means nothing to it any more, so dropping `self` must not wait for it.
        self.commands = None;
        std::mem::forget(self);
        Ok(id)
    }

    pub(super) fn id(&self) -> Option<ProcessId> {
        ProcessId::of(i32::try_from(self.process.id()).ok()?)
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let pipe = self.commands.as_mut().context("the broker was given up")?;
        writeln!(pipe, "{command}").context("the broker's supervisor is gone")
    }

    fn log_text(&self) -> String {
        let mut text = String::new();
        let mut log = &self.log;
        let _ = log.rewind();
        let _ = log.read_to_string(&mut text);
        text
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.process.wait();
    }
}
