//! `millrace dead list`

use anyhow::Result;
use clap::Args;
use comfy_table::{Table, presets};

use super::Filter;
use super::letters::{Facts, Letters};
use crate::exit::Exit;
use crate::global::Global;
use crate::output;
use crate::tally::thousands;

/// List requests that could not be answered, oldest first
///
/// They stay where they are. Not counted among them while it runs: another `millrace dead` on the same queue sees the rest.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  millrace dead list
  millrace dead list --reason poison --json | jq -r '.[].id'

Exit codes: 0, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let letters = Letters::take(&global.load()?, &arguments.filter).await?;
    let facts: Vec<&Facts> = letters.meant.iter().map(|letter| &letter.facts).collect();
    let printed = match (arguments.json, facts.is_empty()) {
        (true, _) => {
            serde_json::to_string_pretty(&facts).map_err(Into::into).and_then(|text| output::print(&text))
        }
        (false, true) => {
            eprintln!("none of {}", thousands(letters.all as u64));
            Ok(())
        }
        (false, false) => output::print(&table(&facts).to_string()),
    };
    letters.close().await;
    printed?;
    Ok(Exit::Success)
}

fn table(facts: &[&Facts]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["id", "model.tier", "reason", "age", "bytes", "kept by", "detail"]);
    for letter in facts {
        table.add_row([
            letter.id.clone().unwrap_or_else(|| "-".to_owned()),
            letter.routing_key.clone(),
            letter.reason.clone(),
            letter.age_seconds.map_or_else(|| "-".to_owned(), age),
            thousands(letter.bytes as u64),
            letter.worker.clone(),
            letter.detail.clone(),
        ]);
    }
    table
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age);
        assert_eq!(ages, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
    }
}
