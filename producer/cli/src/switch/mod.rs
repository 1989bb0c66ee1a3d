//! `millrace switch`

mod clear;
mod list;
mod log;
mod set;
mod workers;

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use millrace_common::amqp::inspect::{InspectError, missing};
use millrace_common::amqp::message::now_ms;
use millrace_common::amqp::publisher::{Outcome, Publisher, PublisherOptions};
use millrace_common::lifecycle::Lifecycle;
use millrace_common::switches::{Entry, Logged, Reader, Record, Switches};
use millrace_producer::Config;

use crate::exit::Exit;
use crate::global::{Global, connector};
use crate::topology::only_exchanges;

/// What is in the stream comes at once.
const QUIET: Duration = Duration::from_millis(500);
/// How long the broker may take to confirm a change.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);

/// Change weights, caps, circuit breakers, degraded answers and features of the whole fleet, for a while and without a restart
///
/// A change reaches every worker in less than a second, one that starts later too, and goes before the workers' configuration. It is kept
/// with who made it, when and why, and ends by itself after the time that it is given, a week at most. What should stay belongs in the
/// configuration: workers follow their file as well (the keys marked [live] in `millrace-worker --print-default-config`).
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Set(set::Arguments),
    Clear(clear::Arguments),
    List(list::Arguments),
    Log(log::Arguments),
}

pub(crate) async fn run(global: &Global, arguments: Arguments) -> Result<Exit> {
    match arguments.command {
        Command::Set(arguments) => set::run(global, &arguments).await,
        Command::Clear(arguments) => clear::run(global, &arguments).await,
        Command::List(arguments) => list::run(global, &arguments).await,
        Command::Log(arguments) => log::run(global, &arguments).await,
    }
}

/// Fails at once and with one line where the broker or the stream cannot be reached.
async fn reach(config: &Config) -> Result<()> {
    let exchange = config.topology.names().switches();
    let needed = only_exchanges(config, std::slice::from_ref(&exchange));
    let missing = match missing(&connector(config)?, &needed).await {
        // RabbitMQ 4.3 shows an exchange to those only who may configure it.
        Err(error @ InspectError::Refused { .. }) => bail!("{error}; switches are the operator's"),
        missing => missing?,
    };
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "there is no stream {exchange}: check topology.prefix and the virtual host, or run `millrace topology apply`"
    )
}

/// All changes that the stream holds, oldest first.
async fn history(config: &Config) -> Result<Vec<Logged>> {
    reach(config).await?;
    let mut reader = Reader::open(connector(config)?, &config.topology);
    let all = reader.all(QUIET).await;
    reader.close().await;
    all.map_err(|reason| anyhow!("cannot read the stream {}: {reason}", config.topology.names().switches()))
}

/// The switches that hold.
fn hold(history: &[Logged]) -> Vec<Entry> {
    let mut switches = Switches::default();
    let now = now_ms();
    for Logged { by, record, .. } in history {
        // Workers refuse what is refused here.
        let _ = switches.apply(record, by, now);
    }
    switches.hold(now)
}

/// Tells every worker.
async fn publish(config: &Config, record: &Record) -> Result<()> {
    let (connector, publishing) = (connector(config)?, Lifecycle::new());
    let user = connector.addresses()[0].user().to_owned();
    let publisher = Publisher::spawn(connector, "switches", PublisherOptions::default(), &publishing);
    let message = record.message(&config.topology.names(), &user);
    let outcome = tokio::time::timeout(CONFIRMED_WITHIN, publisher.publish(message)).await;
    publishing.stop();
    publishing.stopped(Duration::from_secs(2)).await;
    match outcome {
        Ok(Outcome::Confirmed) => Ok(()),
        Ok(Outcome::Unroutable) => {
            bail!("nothing keeps the switches: let an operator run `millrace topology apply`")
        }
        Ok(Outcome::Forbidden(forbidden)) => {
            bail!("the broker forbids it: {}; switches are the operator's", forbidden.reason())
        }
        Ok(outcome) => bail!("the broker did not take the change: {outcome:?}"),
        Err(_) => bail!(
            "the broker did not confirm the change within {CONFIRMED_WITHIN:?}; `millrace switch list` tells whether it holds"
        ),
    }
}

/// Seconds, in short: `9 min`.
fn short(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// As a time of day.
fn time(ms: u64) -> String {
    // Hostile clocks may be far off.
    let at = std::time::UNIX_EPOCH + Duration::from_millis(ms.min(253_402_300_000_000));
    humantime::format_rfc3339_seconds(at).to_string()
}
