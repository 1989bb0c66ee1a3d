//! `millrace submit`

mod answer;
mod bitmap;
mod input;
mod request;
mod results;
mod send;
mod session;
mod set_up;
mod state;
mod summary;
mod survey;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use millrace_common::lifecycle::stop_signal;
use tokio_util::sync::CancellationToken;

pub(crate) use self::answer::body as response_json;
use self::set_up::{Ready, SetUp, set_up};
use self::summary::Summary;
use crate::exit::Exit;
use crate::global::Global;
use crate::progress::Progress;
use crate::tally::thousands;

/// Run a file of requests (JSONL) and write a file of results; goes on where an interrupted run stopped
#[derive(Args)]
#[command(long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Requests, one a line; `-` is standard input
    #[arg(default_value = "-")]
    input: PathBuf,

    /// Answers, one a line
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Model of lines that name none
    #[arg(long)]
    model: Option<String>,

    /// Tier of lines that name none [default: requests.tier of the configuration]
    #[arg(long)]
    tier: Option<String>,

    /// Model version of lines that name none [default: the newest]
    #[arg(long, value_name = "N")]
    version: Option<u64>,

    /// Milliseconds that a line's request may take in all; a batch is patient
    #[arg(long, value_name = "N", default_value_t = 3_600_000, value_parser = clap::value_parser!(u64).range(1..))]
    deadline_ms: u64,

    /// Requests in flight, at most; so many may run twice when this process is killed
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = in_flight)]
    in_flight: usize,

    /// Send a line again up to N times when its failure may pass (`unavailable`, `backend_timeout`, `rate_limited`).
    /// A full queue (`overloaded`) is waited for until the deadline, whatever N is
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u32,

    /// Want the models' own answers or none: no other version's, no smaller model's, no default
    #[arg(long)]
    refuse_degraded: bool,

    /// Send tensors as JSON instead of binary
    #[arg(long)]
    json: bool,

    /// Send each line in a message of its own. Otherwise lines of equal model and shape travel together where the model takes
    /// them so; each still has its own answer
    #[arg(long)]
    no_pack: bool,

    /// Begin anew: drop the output and what is known of an interrupted run
    #[arg(long)]
    restart: bool,
}

const LONG_ABOUT: &str = "\
Run a file of requests (JSONL) and write a file of results; goes on where an interrupted run stopped

Each input line is one request:

  {\"custom_id\": \"a-1\", \"body\": {\"inputs\": [{\"name\": \"image\", \"shape\": [1, 64],
   \"datatype\": \"FP32\", \"data\": [0, 0, 5, ...]}]}}

`custom_id` (1 to 200 bytes) comes back with the result; keep it unique. `model`, `tier`, `version` and `deadline_ms` may \
stand beside it. `body` is a request of the Open Inference Protocol v2, as for KServe or Triton. Each output line is one \
answer, in no particular order:

  {\"custom_id\": \"a-1\", \"line\": 0, \"status\": \"ok\", \"response\": {...}, \"error\": null,
   \"worker\": \"w1\", \"attempt\": 0, \"timing\": {...}, \"latency_us\": 5321}

`line` counts the input's lines from 0. `status` is `ok` or a code (`invalid_input`, `unknown_model`, \
`deadline_exceeded`, ...); then `error` has code and message, and `response` is null.";

const AFTER_HELP: &str = "\
Interruptions:
  Ctrl-C waits for the requests in flight, writes their answers and stops. A second Ctrl-C, a crash, kill -9 or a broker \
that goes away lose nothing: run the same command again and it goes on. OUTPUT.millrace keeps what that needs and is removed \
at the end. Replies that came in the meantime are taken from the broker first (they wait there for a day), then the lines \
without an answer are sent. At most --in-flight of them run a second time, and in the output each line stands once.
  The input, --model, --tier, --version and the broker's user must stay the same; --restart begins anew instead. Standard \
input can be continued too: give it the same lines again.

Memory stays under 100 MB for a million small lines. Ids are compared with each other up to 4 million lines; a repeated \
`custom_id` is reported and does no harm: `line` tells the answers apart.

Examples:
  millrace submit requests.jsonl -o results.jsonl --model digits
  millrace submit requests.jsonl -o results.jsonl --tier premium --in-flight 1000
  zcat requests.jsonl.gz | millrace submit - -o results.jsonl
  jq -c 'select(.status != \"ok\")' results.jsonl      # what failed, and why

Exit codes: 0 every line has its result, 1 some failed (the output says which), 2 wrong usage or configuration, 3 no \
broker, 130 interrupted.";

fn in_flight(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=10_000) => Ok(number),
        _ => Err("use 1 to 10000".to_owned()),
    }
}

pub(crate) async fn run(global: &Global, arguments: Arguments) -> Result<Exit> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let signal = stop_signal().await;
        stopped.cancel();
        signal
    });
    let started = Instant::now();
    let set_up = tokio::select! {
        set_up = set_up(global, &arguments, stop.clone()) => set_up?,
        () = stop.cancelled() => return Ok(Exit::Interrupted),
    };
    let Ready { mut session, input, total, earlier } = match set_up {
        SetUp::Ready(ready) => *ready,
        SetUp::Complete(summary) => return summary.print(&arguments.output),
    };
    if let Some(earlier) = earlier {
        let already = session.results.done.count();
        let collected = session.collect(earlier.missing).await?;
        eprintln!(
            "resumed: {} already done, {} collected from the reply queue, {} submitted again (bound: {})",
            thousands(already),
            thousands(collected),
            thousands(earlier.missing.saturating_sub(collected)),
            thousands(earlier.bound as u64),
        );
    }
    let mut progress = Progress::new(total, session.results.done.count());
    let lines = input.spawn(session.results.done.clone());
    let ran = session.run(lines, &mut progress).await;
    progress.finish();
    // Also after a failure: what is acknowledged should be told to the broker.
    session.client.close().await;
    let is_complete = ran?;
    session.results.sync().await?;
    let summary = Summary::new(&session.results, &session.seen, started.elapsed());
    if is_complete {
        session.client.delete_reply_queue().await;
        session.state.remove()?;
        return summary.print(&arguments.output);
    }
    summary.print(&arguments.output)?;
    let of = total.map_or(String::new(), |total| format!(" of {}", thousands(total)));
    eprintln!(
        "interrupted: {}{of} lines are answered; run the same command again to go on",
        thousands(session.results.done.count())
    );
    Ok(Exit::Interrupted)
}
