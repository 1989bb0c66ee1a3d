//! `millrace dead purge`

use anyhow::Result;
use clap::Args;

use super::letters::Letters;
use super::{Chosen, Filter};
use crate::exit::Exit;
use crate::global::Global;
use crate::tally::thousands;

/// Remove requests that could not be answered, for good
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    filter: Filter,
    /// Really; without it nothing is removed
    #[arg(long)]
    yes: bool,
}

const AFTER_HELP: &str = "\
Examples:
  millrace dead purge --all --reason invalid_reply_to          says how many that would be
  millrace dead purge --all --reason invalid_reply_to --yes

Exit codes: 0, 1 none of them is there, or not all could be removed, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let mut letters = Letters::take(&global.load()?, &arguments.filter).await?;
    letters.choose(&arguments.chosen);
    let meant = letters.meant.len();
    let mut removed = 0;
    if arguments.yes {
        let gone = std::mem::take(&mut letters.meant).into_iter();
        removed = gone.filter_map(|letter| letter.delivery.ticket.ack().ok()).count();
        eprintln!("removed {}", thousands(removed as u64));
    } else {
        eprintln!("{} would be removed: say --yes", thousands(meant as u64));
    }
    letters.close().await;
    let is_done = meant > 0 && (removed == meant || !arguments.yes);
    Ok(if is_done { Exit::Success } else { Exit::Failed })
}
