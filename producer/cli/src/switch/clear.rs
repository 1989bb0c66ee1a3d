//! `millrace switch clear`

use anyhow::Result;
use clap::Args;
use millrace_common::switches::{Entry, MOST_IN_RECORD, Record};

use super::workers::{Workers, heard};
use super::{history, hold, publish};
use crate::exit::{Exit, usage};
use crate::global::Global;

/// End switches before their time
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Names, as `millrace switch list` shows them
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All that hold
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Why; kept for `millrace switch log`
    #[arg(long, value_name = "TEXT", default_value = "not needed any more")]
    reason: String,
}

const AFTER_HELP: &str = "\
Examples:
  millrace switch clear model.big.circuit_breaker
  millrace switch clear --all --reason 'incident 212 is over'

Exit codes: 0 every worker knows it, 1 not all do within seconds, or the broker did not take it,
2 one of them does not hold, wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let held = hold(&history(&config).await?);
    let meant: Vec<&Entry> = held
        .iter()
        .filter(|entry| arguments.all || arguments.names.contains(&entry.setting.name()))
        .collect();
    if let Some(name) =
        arguments.names.iter().find(|name| !meant.iter().any(|entry| entry.setting.name() == **name))
    {
        return Err(usage(format!("{name} does not hold; `millrace switch list` shows what does")));
    }
    if meant.is_empty() {
        eprintln!("no switch holds");
        return Ok(Exit::Success);
    }
    let names: Vec<String> = meant.iter().map(|entry| entry.setting.name()).collect();
    let records = names.chunks(MOST_IN_RECORD).map(|names| Record::clear(names.to_vec(), &arguments.reason));
    let records = records.collect::<Result<Vec<_>, _>>().map_err(|error| usage(error.to_string()))?;
    let workers = Workers::listen(&config).await?;
    for record in records {
        publish(&config, &record).await?;
    }
    let all = |fleet: &_| {
        let heard =
            meant.iter().map(|entry| heard(fleet, entry.setting.model(), &entry.setting.name(), None));
        heard.collect::<Vec<_>>()
    };
    let fleet = workers.wait(|fleet| all(fleet).iter().all(|heard| heard.is_all())).await;
    workers.close().await;
    let mut exit = Exit::Success;
    for (entry, heard) in meant.iter().zip(all(&fleet)) {
        eprintln!("{}: ended, on {heard} workers", entry.setting.name());
        if !heard.is_all() {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}
