//! `--peers`: the fleet against what people would pick instead, on the same machine, in turn in the same run.

mod amqp;
mod answer;
mod http;
mod load;
mod peer;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::setup;
use tokio::runtime::Runtime;

use crate::fleet;
use crate::raw_loop::RawLoop;
use crate::scenario::{Model, Scenario, selected};
use load::Figures;
use peer::{Bench, Peer, Task, sources};
use table::{Contestant, Table};

/// How long and how often.
pub(crate) struct Options {
    pub(crate) seconds: u64,
    pub(crate) runs: usize,
    /// Part of a scenario's name.
    pub(crate) only: String,
    /// Whether the table goes into docs/benchmarks.md.
    pub(crate) write: bool,
}

pub(crate) fn run(runtime: &Runtime, options: &Options) -> Result<()> {
    let library = setup::onnxruntime()?;
    let python = setup::python_environment(&environment()?, &sources().join("requirements.txt"))?;
    let broker = Broker::start(BrokerOptions::default())?;
    let raw = RawLoop::load(&library)?;
    let duration = Duration::from_secs(options.seconds);
    let scenarios: Vec<Scenario> = selected(&options.only).into_iter().filter(is_contested).collect();
    let mut table = Table::new(&broker, options);
    let bench = Bench { broker: &broker, python };
    for run in 0..options.runs {
        for scenario in &scenarios {
            eprintln!("run {} of {}: {}", run + 1, options.runs, scenario.name());
            let expected = raw.answer(scenario)?;
            let task = Task { scenario, expected: &expected, duration };
            for contestant in Contestant::all() {
                let figures: Figures = match contestant {
                    Contestant::Fleet(rows) => {
                        let measured = fleet::measure(&broker, &library, scenario, rows, duration);
                        let (fleet, sample) = runtime.block_on(measured)?;
                        answer::check("the fleet", &sample.reply.body, &expected)?;
                        fleet.into()
                    }
                    Contestant::Peer(peer) => runtime.block_on(peer.measure(&bench, &task))?,
                };
                eprintln!("  {}: {:.0}/s", contestant.name(), figures.rate);
                table.add(scenario, contestant, figures);
            }
        }
    }
    table.print();
    if options.write {
        table.write()?;
    }
    Ok(())
}

/// In binary; *digits* is *tiny* for this purpose.
fn is_contested(scenario: &Scenario) -> bool {
    !scenario.is_json && scenario.model != Model::Digits
}

/// Beside the build profile's directory, in which this program lies: `cargo clean` removes it.
fn environment() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(|profile| profile.parent());
    Ok(target.context("this program lies outside a target directory")?.join("peers-venv"))
}
