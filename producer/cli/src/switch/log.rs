//! `millrace switch log`

use anyhow::Result;
use clap::Args;
use comfy_table::{Table, presets};
use millrace_common::switches::{Logged, Record};
use serde::Serialize;

use super::{history, short, time};
use crate::exit::Exit;
use crate::global::Global;
use crate::output;

/// Show who changed which switches, when and why, oldest first
///
/// The broker keeps two weeks of it, and says who: users are the broker's.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// How many of the last changes
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  millrace switch log
  millrace switch log -n 1000 --json | jq '.[] | select(.by == \"guest\")'

Exit codes: 0, 1 the stream cannot be read, 2 wrong usage or configuration, 3 no broker.";

#[derive(Serialize)]
struct Row<'a> {
    at: String,
    by: &'a str,
    #[serde(flatten)]
    record: &'a Record,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let history = history(&global.load()?).await?;
    let last = &history[history.len().saturating_sub(arguments.limit)..];
    let rows = last.iter().map(|Logged { by, record, .. }| Row { at: time(record.at_ms), by, record });
    let rows: Vec<Row<'_>> = rows.collect();
    match (arguments.json, rows.is_empty()) {
        (true, _) => output::print(&serde_json::to_string_pretty(&rows)?)?,
        (false, true) => eprintln!("nothing was switched in the last two weeks"),
        (false, false) => output::print(&table(&rows).to_string())?,
    }
    Ok(Exit::Success)
}

fn table(rows: &[Row<'_>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["at", "by", "change", "for", "reason"]);
    for Row { at, by, record } in rows {
        let set = record.set.iter().map(|(name, value)| format!("{name}={value}"));
        let cleared = record.clear.iter().map(|name| format!("{name} ended"));
        let changes: Vec<String> = set.chain(cleared).collect();
        let hold = if record.set.is_empty() { String::new() } else { short(record.seconds) };
        table.add_row([at, &(*by).to_owned(), &changes.join("\n"), &hold, &record.reason]);
    }
    table
}
