//! `cargo xtask demo`

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::setup;

use crate::fleet::{self, Fleet};
use crate::workspace;

const BROKER_VARIABLE: &str = "MILLRACE_AMQP_URL";

/// Start a broker and workers, send real requests through them, show the result, stop everything
///
/// Exits with what `millrace demo` exits with. Ctrl-C stops everything too. The workers' logs are in target/demo. With MILLRACE_AMQP_URL set it uses that broker
/// instead of starting one.
#[derive(Args)]
#[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --workers 4")]
pub(crate) struct Arguments {
    /// How many worker processes
    #[arg(long, default_value_t = 2)]
    workers: u16,
    /// Passed on to `millrace demo`
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::onnxruntime()?;
    let (broker, binaries) = broker_and_binaries()?;
    let fleet = Fleet {
        amqp_url: match &broker {
            Some(broker) => broker.amqp_url(),
            None => std::env::var(BROKER_VARIABLE)?,
        },
        models: fleet::own_models(),
        logs: workspace::target()?.join("demo"),
        binaries,
    };
    // Nothing here catches Ctrl-C: broker and workers end with this process, whatever ends it.
    let _workers = fleet.start(arguments.workers)?;
    let mut demo = Command::new(fleet.binaries.join("millrace"));
    demo.arg("demo")
        .args(["--data", "compose/data/digits.csv"])
        .args(["--training", "compose/models/digits/training.json"])
        .args(&arguments.arguments)
        .current_dir(workspace::root())
        .env(BROKER_VARIABLE, &fleet.amqp_url);
    let status = demo.status().context("cannot run `millrace demo`")?;
    Ok(workspace::exit_code(status))
}

/// Side by side, since a broker takes some seconds to start.
fn broker_and_binaries() -> Result<(Option<Broker>, std::path::PathBuf)> {
    if std::env::var_os(BROKER_VARIABLE).is_some() {
        return Ok((None, fleet::build()?));
    }
    std::thread::scope(|scope| {
        let broker = scope.spawn(|| {
            // The demo speaks AMQP only; a node without plugins starts faster.
            Broker::start(BrokerOptions { plugins: Vec::new(), root: None, ..BrokerOptions::default() })
        });
        let binaries = fleet::build();
        let broker = broker.join().expect("starting a broker returns its errors");
        Ok((Some(broker?), binaries?))
    })
}
