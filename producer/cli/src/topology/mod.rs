//! `millrace topology`

mod apply;
mod diff;
mod export;
mod live;
mod users;
mod wanted;

use anyhow::Result;
use clap::{Args, Subcommand};

pub(crate) use self::diff::{Difference, differences};
pub(crate) use self::live::Live;
pub(crate) use self::wanted::{only_exchanges, topology as wanted_topology};
use crate::exit::Exit;
use crate::global::Global;

/// Create, compare and export what Millrace needs on the broker: exchanges, queues, bindings, policies, users
///
/// In development workers and clients create what they need when they start. In production set topology.declare = false for
/// them and let an operator run this.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Apply(apply::Arguments),
    Diff(diff::Arguments),
    Export(export::Arguments),
}

/// Which models' queues are meant.
#[derive(Args, Clone)]
struct Models {
    /// Models whose queues are meant, separated by commas [default: those that workers serve now]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    models: Vec<String>,
}

pub(crate) async fn run(global: &Global, arguments: Arguments) -> Result<Exit> {
    match arguments.command {
        Command::Apply(arguments) => apply::run(global, &arguments).await,
        Command::Diff(arguments) => diff::run(global, &arguments).await,
        Command::Export(arguments) => export::run(global, &arguments).await,
    }
}
