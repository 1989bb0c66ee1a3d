//! `millrace dead`

mod letters;
mod list;
mod purge;
mod redrive;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::global::Global;

/// Look at requests that could not be answered, send them again, or remove them
///
/// Workers keep them in the queue `<prefix>.dead` with the reason: poison (it ended the processes that ran it), reply_refused (the
/// requester reads no replies), and what only a hostile or broken client sends. Requests that failed or expired are not among
/// them: their requesters know.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::Arguments),
    Show(show::Arguments),
    Redrive(redrive::Arguments),
    Purge(purge::Arguments),
}

/// Which of them are meant.
#[derive(Args, Clone)]
struct Filter {
    /// Only those kept for this reason
    #[arg(long)]
    reason: Option<String>,
    /// Only those for this model
    #[arg(long)]
    model: Option<String>,
    /// How many of the queue's oldest messages to look through
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
}

/// Which of them something is done to: it must be said.
#[derive(Args, Clone)]
#[group(required = true, multiple = true)]
struct Chosen {
    /// Request ids, as `millrace dead list` shows them
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All that --reason and --model leave
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub(crate) async fn run(global: &Global, arguments: Arguments) -> Result<Exit> {
    match arguments.command {
        Command::List(arguments) => list::run(global, &arguments).await,
        Command::Show(arguments) => show::run(global, &arguments).await,
        Command::Redrive(arguments) => redrive::run(global, &arguments).await,
        Command::Purge(arguments) => purge::run(global, &arguments).await,
    }
}
