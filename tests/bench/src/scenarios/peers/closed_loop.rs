//! A closed loop's figures, taken the same way whatever the protocol: a second of warm-up, then everything counts.

use std::time::{Duration, Instant};

use crate::cpu::{self, Meter};

const WARM_UP: Duration = Duration::from_secs(1);

/// What one side did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Items a second.
    pub(super) rate: f64,
    /// CPU microseconds an item: client, worker, broker.
    pub(super) cpu_us: [f64; 3],
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Whose CPU time counts beside the client's, which is this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processes {
    /// With everything it has started.
    pub(super) worker: u32,
    /// None where there is no broker.
    pub(super) broker: Option<u32>,
}

impl Processes {
    /// Pids by side.
    fn sides(self) -> [Vec<u32>; 3] {
        [vec![std::process::id()], cpu::tree(self.worker), self.broker.into_iter().collect()]
    }
}

/// Counts answers.
pub(super) struct Tally {
    sides: [Vec<u32>; 3],
    duration: Duration,
    is_warm: bool,
    started: Instant,
    meter: Meter,
    latencies: Vec<Duration>,
}

impl Tally {
    pub(super) fn start(processes: Processes, duration: Duration) -> Self {
        let sides = processes.sides();
        let meter = Meter::start(&sides.concat());
        Self { sides, duration, is_warm: false, started: Instant::now(), meter, latencies: Vec::new() }
    }

    /// Counts an answer; false once the time is over.
    pub(super) fn count(&mut self, latency: Duration) -> bool {
        if self.is_warm {
            self.latencies.push(latency);
            return self.started.elapsed() < self.duration;
        }
        if self.started.elapsed() > WARM_UP {
            (self.is_warm, self.started) = (true, Instant::now());
            self.meter = Meter::start(&self.sides.concat());
        }
        true
    }

    pub(super) fn finish(mut self) -> Figures {
        let seconds = self.started.elapsed().as_secs_f64();
        let count = self.latencies.len().max(1) as f64;
        let mut cpu = self.meter.stop().into_iter();
        let cpu_us = self.sides.map(|pids| {
            let spent: Duration = cpu.by_ref().take(pids.len()).sum();
            spent.as_secs_f64() * 1e6 / count
        });
        self.latencies.sort_unstable();
        let percentile = |part: f64| {
            self.latencies.get((count * part) as usize).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        Figures { rate: count / seconds, cpu_us, p50_ms: percentile(0.5), p99_ms: percentile(0.99) }
    }
}
