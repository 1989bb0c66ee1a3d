//! `millrace cancel`

use anyhow::Result;
use clap::Args;
use millrace_producer::Client;

use crate::exit::Exit;
use crate::global::Global;
use crate::tally::thousands;

/// Cancel requests that no model runs yet
///
/// Tells every worker. A request that waits, in its queue or in a worker, is answered `cancelled` when its turn comes, and never run; one
/// that runs already ends as it would. Only requests of the same broker user are cancelled.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Ids of requests, their `message_id`
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

const AFTER_HELP: &str = "\
A worker that starts later does not know of it, and runs what it finds in the queue.

Examples:
  millrace cancel 0199d0f2-7b5e-7cc0-8000-5a1c7e0d2b11
  xargs millrace cancel < ids.txt

Exit codes: 0 the workers are told, 1 they could not be, 2 wrong usage or configuration, 3 no broker.";

pub(crate) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let client: Client = global.connect().await?;
    let cancelled = client.cancel(arguments.ids.iter().cloned()).await;
    client.close().await;
    match cancelled {
        Ok(()) => {
            eprintln!("told the workers not to run {} of them", thousands(arguments.ids.len() as u64));
            Ok(Exit::Success)
        }
        Err(error) => {
            eprintln!("millrace: {error}");
            Ok(Exit::Failed)
        }
    }
}
