//! `millrace switch set`

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use millrace_common::amqp::message::now_ms;
use millrace_common::fleet::Fleet;
use millrace_common::switches::{LONGEST, NAMES, Record, Setting};
use millrace_producer::Config;

use super::workers::{Heard, Workers, heard};
use super::{publish, time};
use crate::exit::{Exit, usage};
use crate::global::Global;

/// An announcement is a few seconds old at most.
const CLOCKS_DIFFER_SECONDS: u64 = 10;

/// Set switches for a while
///
/// All that are given change together or, if one of them is wrong, none. A switch that holds already gets the new value and time.
#[derive(Args)]
#[command(after_long_help = format!("Switches:\n{NAMES}\n\n{AFTER_HELP}"), after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Which, and to what; `--help` lists them
    #[arg(required = true, value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// How long, for example 90s, 10m or 2h; a week at most
    #[arg(long = "for", value_name = "TIME", default_value = "1h")]
    hold: humantime::Duration,
    /// Why; kept for `millrace switch log`
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not wait to see it reach the workers
    #[arg(long)]
    no_wait: bool,
}

const AFTER_HELP: &str = "\
Examples:
  millrace switch set tier.free.max_share=0.2 --for 30m --reason 'launch day'
  millrace switch set model.big.circuit_breaker=forced_open --reason 'wrong answers'
  millrace switch set model.big.free.degraded=on feature.cache=off --for 2h --reason 'incident 7'

Exit codes: 0 every worker knows it, 1 not all do within seconds, none serves the model, or the
broker did not take it, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let settings = parse(&config, &arguments.settings)?;
    let hold: Duration = arguments.hold.into();
    if hold > LONGEST {
        return Err(usage("--for: a week at most; what should stay belongs in the workers' configuration"));
    }
    let record = Record::set(&settings, hold, &arguments.reason).map_err(|error| usage(error.to_string()))?;
    super::reach(&config).await?;
    let until = time(record.at_ms + record.seconds * 1000);
    if arguments.no_wait {
        publish(&config, &record).await?;
        eprintln!("sent; holds until {until}");
        return Ok(Exit::Success);
    }
    let workers = Workers::listen(&config).await?;
    publish(&config, &record).await?;
    let all = |fleet: &_| {
        settings
            .iter()
            .map(|setting| heard(fleet, setting.model(), &setting.name(), Some(&setting.value())))
            .collect::<Vec<_>>()
    };
    let fleet = workers.wait(|fleet| all(fleet).iter().all(|heard| heard.is_all())).await;
    workers.close().await;
    Ok(report(&fleet, &settings, &all(&fleet), &until))
}

fn report(fleet: &Fleet, settings: &[Setting], all: &[Heard], until: &str) -> Exit {
    let mut exit = Exit::Success;
    let is_empty = fleet.workers().next().is_none();
    for (setting, heard) in settings.iter().zip(all) {
        match (heard.of, setting.model()) {
            (0, Some(model)) if !is_empty => {
                exit = Exit::Failed;
                eprintln!(
                    "{setting}: until {until}, but no worker serves a model {model}; `millrace models` lists them"
                );
            }
            (0, _) => eprintln!("{setting}: until {until}; no worker runs now, one that starts will know"),
            _ => eprintln!("{setting}: until {until}, on {heard} workers"),
        }
    }
    if all.iter().any(|heard| !heard.is_all()) {
        exit = Exit::Failed;
        eprintln!(
            "those that do not say so within seconds have another configuration or release, or no way to the broker: see their logs"
        );
        for worker in fleet.workers() {
            let differ = now_ms().abs_diff(worker.now_ms) / 1000;
            if differ > CLOCKS_DIFFER_SECONDS {
                eprintln!("the clock of {} differs from this machine's by {differ} s", worker.worker);
            }
        }
    }
    exit
}

fn parse(config: &Config, settings: &[String]) -> Result<Vec<Setting>> {
    let mut parsed: Vec<Setting> = Vec::new();
    for text in settings {
        let (name, value) =
            text.split_once('=').ok_or_else(|| usage(format!("`{text}`: write NAME=VALUE")))?;
        let setting = Setting::parse(name, value).map_err(|error| usage(error.to_string()))?;
        if let Some(tier) = setting.tier().filter(|tier| config.topology.tier(tier).is_none()) {
            let known: Vec<&str> = config.topology.tiers.iter().map(|tier| tier.name.as_str()).collect();
            return Err(usage(format!(
                "{name}: there is no tier {tier}; topology.tiers has {}",
                known.join(", ")
            )));
        }
        if parsed.iter().any(|other| other.name() == name) {
            return Err(usage(format!("{name} is given twice")));
        }
        parsed.push(setting);
    }
    Ok(parsed)
}
