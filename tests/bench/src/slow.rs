//! Makes a process as slow as an old machine would.
//!
//! It is stopped and continued in turn, all its threads at once, which is what a CPU quota does to a container; signals need no
//! privileges and no particular version of control groups. Everything it does takes so much longer, its model as well as its
//! share of AMQP, as on a slow machine. What a period cannot tell is work much shorter than itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_harness::process::ProcessId;
use nix::sys::signal::Signal;

/// One turn of running and being stopped.
const PERIOD: Duration = Duration::from_millis(20);

/// Slows a process down until it is dropped.
pub(crate) struct Slowed {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    /// Lets it run one `factor`th of the time.
    pub(crate) fn by(factor: u32, pid: u32) -> Result<Self> {
        let process = ProcessId::of(i32::try_from(pid)?).context("the process has ended")?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || alternate(process, factor, &over));
        Ok(Self { is_over, thread: Some(thread) })
    }
}

fn alternate(process: ProcessId, factor: u32, is_over: &AtomicBool) {
    let mut ran = Duration::ZERO;
    let started = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        // Sleeps overrun; the next turn makes up for it, so that the share holds over time.
        let due = (started.elapsed() + PERIOD) / factor;
        let resumed = Instant::now();
        process.signal(Signal::SIGCONT);
        std::thread::sleep(due.saturating_sub(ran));
        process.signal(Signal::SIGSTOP);
        ran += resumed.elapsed();
        std::thread::sleep(PERIOD - PERIOD / factor);
    }
    process.signal(Signal::SIGCONT);
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
