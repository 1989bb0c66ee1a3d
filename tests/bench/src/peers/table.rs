//! The comparison, on the terminal and in docs/benchmarks.md.

use std::collections::BTreeMap;

use anyhow::Result;
use millrace_harness::broker::Broker;

use super::{Figures, Options, Peer};
use crate::fleet::Rows;
use crate::report::{Spread, commit, machine, write_between};
use crate::scenario::Scenario;

const BEGIN: &str = "<!-- peers: written by `cargo xtask bench --peers -- --write` -->";
const END: &str = "<!-- peers: end -->";

/// Whose figures a line holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    Fleet(Rows),
    Peer(Peer),
}

impl Contestant {
    /// In the order of measuring.
    pub(crate) fn all() -> Vec<Self> {
        let fleet = Rows::MEASURED.iter().copied().map(Self::Fleet);
        fleet.chain(Peer::ALL.map(Self::Peer)).collect()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fleet(Rows::Single) => "**fleet**, a row a message",
            Self::Fleet(Rows::Packed) => "**fleet**, rows packed",
            Self::Peer(peer) => peer.name(),
        }
    }
}

/// Figures of every run, by scenario in the order of the first run.
pub(crate) struct Table {
    head: String,
    order: Vec<String>,
    runs: BTreeMap<(String, Contestant), Vec<Figures>>,
}

impl Table {
    pub(crate) fn new(broker: &Broker, Options { seconds, runs, only, .. }: &Options) -> Self {
        let only = if only.is_empty() { String::new() } else { format!(" --only {only}") };
        let head = format!(
            "{}; RabbitMQ {}; commit {}; `cargo xtask bench --peers -- --seconds {seconds} --runs {runs}{only}`",
            machine(),
            broker.version(),
            commit()
        );
        Self { head, order: Vec::new(), runs: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, contestant: Contestant, figures: Figures) {
        let name = scenario.name();
        if !self.order.contains(&name) {
            self.order.push(name.clone());
        }
        self.runs.entry((name, contestant)).or_default().push(figures);
    }

    fn text(&self) -> String {
        let ratios: Vec<&str> = Rows::MEASURED
            .iter()
            .map(|rows| match rows {
                Rows::Single => " fleet, a row a message ÷ this |",
                Rows::Packed => " fleet, packed ÷ this |",
            })
            .collect();
        let mut lines = vec![
            format!(
                "| scenario | who | items /s |{} p50 / p99 ms | CPU µs an item: client + worker + broker |",
                ratios.concat()
            ),
            format!("|---|---|---|{}---|---|", "---|".repeat(ratios.len())),
        ];
        for scenario in &self.order {
            for contestant in Contestant::all() {
                lines.extend(self.line(scenario, contestant));
            }
        }
        lines.join("\n")
    }

    fn line(&self, scenario: &str, contestant: Contestant) -> Option<String> {
        let runs = |who| self.runs.get(&(scenario.to_owned(), who));
        let own = runs(contestant)?;
        let spread = |value: &dyn Fn(&Figures) -> f64| Spread::of(own.iter().map(value).collect());
        let ratios = Rows::MEASURED.iter().map(|&rows| {
            let fleet = runs(Contestant::Fleet(rows)).filter(|_| matches!(contestant, Contestant::Peer(_)));
            // Run by run: a noisy minute hits both.
            fleet.map_or_else(String::new, |fleet| {
                Spread::of(fleet.iter().zip(own).map(|(fleet, own)| fleet.rate / own.rate).collect()).ratio()
            })
        });
        let ratios: String = ratios.map(|ratio| format!(" {ratio} |")).collect();
        let cpu: Vec<f64> = (0..3).map(|side| spread(&|figures| figures.cpu_us[side]).median).collect();
        Some(format!(
            "| {scenario} | {} | {} |{ratios} {:.1} / {:.1} | {:.0} + {:.0} + {:.0} = {:.0} |",
            contestant.name(),
            spread(&|figures| figures.rate).text(),
            spread(&|figures| figures.p50_ms).median,
            spread(&|figures| figures.p99_ms).median,
            cpu[0],
            cpu[1],
            cpu[2],
            cpu.iter().sum::<f64>(),
        ))
    }

    pub(crate) fn print(&self) {
        println!("{}\n\n{}", self.head, self.text());
    }

    /// Replaces the part between the markers.
    pub(crate) fn write(&self) -> Result<()> {
        write_between(BEGIN, END, &format!("{}.\n\n{}", self.head, self.text()))
    }
}
