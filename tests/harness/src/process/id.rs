//! A process that need not be our child.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const POLL: Duration = Duration::from_millis(10);

/// A process by pid and start time: after its end the same pid may mean another one, which must never be signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    started: u64,
}

impl ProcessId {
    /// The process that has this pid now, if one has.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (!is_dead(state)).then_some(Self { pid, started })
    }

    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it runs; one that has ended and only waits for its parent to notice does not.
    pub fn is_running(self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && !is_dead(state))
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(self, signal: Signal) {
        if self.is_running() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits for its end; false if it still runs after `timeout`.
    pub fn wait(self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_running() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// SIGTERM, and SIGKILL for one that is not gone within `grace`; true if the first was enough.
    pub fn stop(self, grace: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        let obeyed = self.wait(grace);
        if !obeyed {
            self.signal(Signal::SIGKILL);
            self.wait(grace);
        }
        obeyed
    }
}

fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X')
}

/// State and start time. The name in parentheses before them may itself hold spaces and parentheses.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_running());
        let earlier = ProcessId { started: me.started - 1, ..me };
        assert!(!earlier.is_running());
        // Would end this test if it were sent.
        earlier.signal(Signal::SIGKILL);
    }
}
