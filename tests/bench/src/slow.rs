//! Makes a process as slow as an old machine would.
//!
//! For every moment of CPU time that it takes it is stopped for so many more, all its threads at once: everything it does takes
//! so much longer, its model as well as its share of AMQP. A CPU quota does nearly the same, but lets a process that was idle run
//! its first milliseconds at full speed, and needs privileges and some version of control groups; signals need neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_harness::process::ProcessId;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// How often its CPU time is looked at. Work much shorter than this is not slowed down evenly.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// CPU time that it may take at a time.
const SLICE: Duration = Duration::from_micros(500);

/// Slows a process down until it is dropped.
pub(crate) struct Slowed {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    /// Makes everything take `factor` times as long.
    pub(crate) fn by(factor: u32, pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        let process = ProcessId::of(pid).context("the process has ended")?;
        let clock = clock_getcpuclockid(Pid::from_raw(pid))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            // Its clock ends with it.
            let _ = slow_down(process, clock, factor, &over);
            process.signal(Signal::SIGCONT);
        });
        Ok(Self { is_over, thread: Some(thread) })
    }
}

fn slow_down(process: ProcessId, clock: ClockId, factor: u32, is_over: &AtomicBool) -> Result<()> {
    let mut taken = Duration::from(clock_gettime(clock)?);
    // Stops due beyond those made; sleeps overrun, and the next stop is shorter for it.
    let (mut due, mut made) = (Duration::ZERO, Duration::ZERO);
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        let now = Duration::from(clock_gettime(clock)?);
        due += now.saturating_sub(taken) * (factor - 1);
        taken = now;
        let owed = due.saturating_sub(made);
        if owed >= SLICE * (factor - 1) {
            let stopped = Instant::now();
            process.signal(Signal::SIGSTOP);
            std::thread::sleep(owed);
            process.signal(Signal::SIGCONT);
            made += stopped.elapsed();
        }
    }
    Ok(())
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
