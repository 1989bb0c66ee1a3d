//! Kills a child when its owner is gone.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A shell that holds the reading end of a pipe, whose end means that the owner died without a word. The kernel's own
/// "parent death signal" will not do: it is tied to the *thread* that started the child.
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Kills `target`, a pid or as a negative number a process group, and removes `directory` if there is one, when this
    /// process ends without dropping the watchdog.
    pub(super) fn over(target: &str, directory: Option<&Path>) -> Result<Self> {
        Command::new("sh")
            .args(["-c", "read -r _ || { kill -KILL \"$0\"; rm -rf \"$@\"; }"])
            .arg(target)
            .args(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C must not end it before its owner.
            .process_group(0)
            .spawn()
            .map(Self)
            .context("cannot run sh")
    }

    pub(super) fn dismiss(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = writeln!(pipe, "dismissed");
            let _ = self.0.wait();
        }
    }
}
