//! The table, on the terminal and in docs/benchmarks.md.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use millrace_harness::broker::Broker;

use crate::echo::Echo;
use crate::fleet::Fleet;
use crate::raw_loop::Best;
use crate::scenario::Scenario;

const BEGIN: &str = "<!-- throughput: written by `cargo xtask bench -- --write` -->";
const END: &str = "<!-- throughput: end -->";

/// One run of a scenario.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) fleet: Fleet,
    /// The echo of the bodies alone.
    pub(crate) bare: Echo,
    /// The echo of the very messages.
    pub(crate) same: Echo,
    pub(crate) raw: Best,
}

/// Results by scenario, in the order of the first run.
pub(crate) struct Report {
    order: Vec<String>,
    results: BTreeMap<String, Vec<Measured>>,
    head: String,
}

impl Report {
    pub(crate) fn new(broker: &Broker, only: &str, seconds: u64, runs: usize) -> Self {
        let only = if only.is_empty() { String::new() } else { format!(" --only {only}") };
        let head = format!(
            "{}; RabbitMQ {}; commit {}; `cargo xtask bench -- --seconds {seconds} --runs {runs}{only}`",
            machine(),
            broker.version(),
            commit()
        );
        Self { order: Vec::new(), results: BTreeMap::new(), head }
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, measured: Measured) {
        let name = scenario.name();
        let Measured { fleet, bare, same, raw } = &measured;
        eprintln!(
            "  fleet {:.0}/s, echo {:.0}/s bare, {:.0}/s same, raw loop {:.0}/s at batch {}, mean batch {:.1}",
            fleet.rate, bare.rate, same.rate, raw.rows, raw.batch, fleet.batch
        );
        if !self.order.contains(&name) {
            self.order.push(name.clone());
        }
        self.results.entry(name).or_default().push(measured);
    }

    fn table(&self) -> String {
        let mut lines = vec![
            "| scenario | fleet /s | bare echo /s | of bare | same echo /s | of same | raw loop rows/s (batch) | of loop | mean batch | p50 / p99 ms | CPU µs a request: client + worker + broker (bare echo, same echo: all) |".to_owned(),
            "|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
        ];
        for name in &self.order {
            let results = &self.results[name];
            let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(results.iter().map(value).collect());
            let cpu: Vec<f64> = (0..3).map(|i| spread(&|r| r.fleet.cpu_us[i]).median).collect();
            lines.push(format!(
                "| {name} | {} | {} | {} | {} | {} | {} ({}) | {} | {:.1} | {:.1} / {:.1} | {:.0} + {:.0} + {:.0} = {:.0} ({:.0}, {:.0}) |",
                spread(&|r| r.fleet.rate).text(),
                spread(&|r| r.bare.rate).text(),
                spread(&|r| r.fleet.rate / r.bare.rate).ratio(),
                spread(&|r| r.same.rate).text(),
                spread(&|r| r.fleet.rate / r.same.rate).ratio(),
                spread(&|r| r.raw.rows).text(),
                results[0].raw.batch,
                spread(&|r| r.fleet.rate / r.raw.rows).ratio(),
                spread(&|r| r.fleet.batch).median,
                spread(&|r| r.fleet.p50_ms).median,
                spread(&|r| r.fleet.p99_ms).median,
                cpu[0],
                cpu[1],
                cpu[2],
                cpu.iter().sum::<f64>(),
                spread(&|r| r.bare.cpu_us).median,
                spread(&|r| r.same.cpu_us).median,
            ));
        }
        lines.join("\n")
    }

    pub(crate) fn print(&self) {
        println!("{}\n\n{}", self.head, self.table());
    }

    /// Replaces the part between the markers.
    pub(crate) fn write(&self) -> Result<()> {
        write_between(BEGIN, END, &format!("{}.\n\n{}", self.head, self.table()))
    }
}

/// Replaces what stands between two markers of docs/benchmarks.md.
pub(crate) fn write_between(begin: &str, end: &str, part: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (before, rest) = text.split_once(begin).context("docs/benchmarks.md has lost its begin marker")?;
    let (_, after) = rest.split_once(end).context("docs/benchmarks.md has lost its end marker")?;
    std::fs::write(&path, format!("{before}{begin}\n\n{part}\n\n{end}{after}"))?;
    Ok(())
}

pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Self { median: values[last / 2], least: values[0], most: values[last] }
    }

    pub(crate) fn ratio(&self) -> String {
        format!("**{:.2}** ({:.2}–{:.2})", self.median, self.least, self.most)
    }

    pub(crate) fn text(&self) -> String {
        format!("{:.0} ({:.0}–{:.0})", self.median, self.least, self.most)
    }
}

pub(crate) fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown CPU");
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} × {}", model.trim_start_matches([' ', '\t', ':']))
}

pub(crate) fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
