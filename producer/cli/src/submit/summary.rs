//! What is told at the end of a run.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::results::{Results, Statuses};
use super::session::Seen;
use crate::exit::Exit;
use crate::output;
use crate::tally::{Latencies, Workers, milliseconds, per_second, thousands};

/// A run in figures.
#[derive(Debug)]
pub(super) struct Summary {
    statuses: Statuses,
    latencies: Latencies,
    workers: Workers,
    answered: u64,
    late: u64,
    took: Duration,
}

impl Summary {
    /// `took` and the answers seen are this run's, the statuses those of the whole output.
    pub(super) fn new(results: &Results, seen: &Seen, took: Duration) -> Self {
        Self {
            statuses: results.statuses.clone(),
            latencies: seen.latencies.clone(),
            workers: seen.workers.clone(),
            answered: seen.answered,
            late: seen.late,
            took,
        }
    }

    /// Prints it; tells what the process should end with.
    pub(super) fn print(&self, path: &Path) -> Result<Exit> {
        output::print(&self.text(path))?;
        let is_all_well = self.statuses.keys().all(|&status| status == "ok");
        Ok(if is_all_well { Exit::Success } else { Exit::Failed })
    }

    fn text(&self, path: &Path) -> String {
        let mut lines = Vec::new();
        let statuses: Vec<String> =
            self.statuses.iter().map(|(status, count)| format!("{} {status}", thousands(*count))).collect();
        let total: u64 = self.statuses.values().sum();
        lines.push(format!("{}: {} answers ({})", path.display(), thousands(total), statuses.join(", ")));
        if self.answered > 0 {
            lines.push(format!(
                "this run: {} answers in {:.1} s, {}/s, latency p50 {}, p99 {}",
                thousands(self.answered),
                self.took.as_secs_f64(),
                thousands(per_second(self.answered, self.took)),
                milliseconds(self.latencies.quantile(0.5)),
                milliseconds(self.latencies.quantile(0.99)),
            ));
        }
        for (worker, count) in self.workers.iter() {
            lines.push(format!("  {worker}: {}", thousands(count)));
        }
        if self.late > 0 {
            lines.push(format!("{} replies came a second time and were dropped", thousands(self.late)));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_failures_and_workers() {
        let mut workers = Workers::default();
        workers.count("w1");
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_millis(5));
        let summary = Summary {
            statuses: Statuses::from([("ok", 1999), ("poison", 1)]),
            latencies,
            workers,
            answered: 1000,
            late: 2,
            took: Duration::from_secs(2),
        };
        let text = summary.text(Path::new("out"));
        for part in ["out: 2,000 answers (1,999 ok, 1 poison)", "500/s", "p50 5.0 ms", "w1: 1", "2 replies"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
