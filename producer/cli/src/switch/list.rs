//! `millrace switch list`

use anyhow::Result;
use clap::Args;
use comfy_table::{Table, presets};
use millrace_common::amqp::message::now_ms;
use millrace_common::switches::Entry;
use serde::Serialize;

use super::workers::{Workers, heard};
use super::{history, hold, short, time};
use crate::exit::Exit;
use crate::global::Global;
use crate::output;

/// List the switches that hold, and how many workers know them
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  millrace switch list
  millrace switch list --json | jq -r '.[].name'

Exit codes: 0, 1 the stream cannot be read, 2 wrong usage or configuration, 3 no broker.";

#[derive(Serialize)]
struct Row {
    name: String,
    value: String,
    since: String,
    until: String,
    seconds_left: u64,
    by: String,
    reason: String,
    /// Workers that know it, of those whom it concerns.
    workers: usize,
    of: usize,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let held = hold(&history(&config).await?);
    if held.is_empty() && !arguments.json {
        eprintln!("no switch holds");
        return Ok(Exit::Success);
    }
    let workers = Workers::listen(&config).await?;
    let fleet = workers.wait(|_| true).await;
    workers.close().await;
    let rows = held.into_iter().map(|Entry { setting, at_ms, until_ms, by, reason }| {
        let heard = heard(&fleet, setting.model(), &setting.name(), Some(&setting.value()));
        Row {
            name: setting.name(),
            value: setting.value(),
            since: time(at_ms),
            until: time(until_ms),
            seconds_left: until_ms.saturating_sub(now_ms()) / 1000,
            by,
            reason,
            workers: heard.have,
            of: heard.of,
        }
    });
    let rows: Vec<Row> = rows.collect();
    match arguments.json {
        true => output::print(&serde_json::to_string_pretty(&rows)?)?,
        false => output::print(&table(&rows).to_string())?,
    }
    Ok(Exit::Success)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["switch", "value", "ends in", "workers", "by", "reason"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.value.clone(),
            short(row.seconds_left),
            format!("{} of {}", row.workers, row.of),
            row.by.clone(),
            row.reason.clone(),
        ]);
    }
    table
}
