//! `cargo xtask up`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use millrace_harness::broker::{Broker, BrokerOptions, DetachedBroker};
use millrace_harness::process::{Process, ProcessId};

use crate::fleet::{self, Fleet};
use crate::state::{self, State};

/// Start a private broker and workers, and leave them running
///
/// Builds the release binaries, starts RabbitMQ on free ports and the workers on it, prints the addresses and returns. Logs are
/// in target/up. `cargo xtask down` stops all of it and removes the broker's data.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask up\n  cargo xtask up --workers 4 --models ~/models --port 5672"
)]
pub(crate) struct Arguments {
    /// How many worker processes
    #[arg(long, default_value_t = 2)]
    workers: u16,
    /// Model repository: `DIR/MODEL/VERSION/model.onnx`; compose/models by default
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// AMQP port of the broker; a free one by default
    #[arg(long)]
    port: Option<u16>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match State::load()? {
        Some(state) if state.is_running() => {
            bail!("a fleet is up already, on {}; stop it with `cargo xtask down`", state.broker.amqp_url)
        }
        // Its processes are gone, as after a restart of the machine.
        Some(state) => drop(state.broker.stop()),
        None => {}
    }
    // Relative to where the user is; the workers start elsewhere.
    let models = match &arguments.models {
        Some(models) => std::path::absolute(models)?,
        None => fleet::own_models(),
    };
    let binaries = fleet::build()?;
    let directory = state::directory()?;
    let broker = Broker::start(BrokerOptions {
        port: arguments.port,
        directory: Some(directory.join("broker")),
        root: None,
        ..BrokerOptions::default()
    })?;
    let fleet = Fleet { binaries, amqp_url: broker.amqp_url(), models, logs: directory };
    let workers = fleet.start(arguments.workers)?;
    let state = State {
        workers: workers.into_iter().map(Process::detach).collect::<Result<_>>()?,
        broker: broker.detach()?,
    };
    state.save()?;
    explain(&state.broker, &state.workers, &fleet);
    Ok(ExitCode::SUCCESS)
}

fn explain(broker: &DetachedBroker, workers: &[ProcessId], fleet: &Fleet) {
    let pids: Vec<String> = workers.iter().map(|worker| worker.pid().to_string()).collect();
    let (amqp, management) = (&broker.amqp_url, &broker.management_url);
    let command = fleet.binaries.join("millrace");
    let command = command.display();
    println!("RabbitMQ {:<9}{amqp}", broker.version);
    println!("management        {management}");
    println!("workers           {} (pids {})", workers.len(), pids.join(", "));
    println!("logs              {}", fleet.logs.display());
    println!("\nTry:\n  export MILLRACE_AMQP_URL={amqp} MILLRACE_MANAGEMENT_URL={management}");
    println!("  {command} doctor\n  {command} models\n\nStop with: cargo xtask down");
}
