//! `cargo xtask chaos`

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::test::{RabbitMqVersion, run_with};
use crate::workspace;

/// Kill and restart workers, broker and clients at random under load, for minutes
///
/// A broker, three workers, a client with requests in flight all the time, and `millrace submit` over one file after the
/// other. Every few tenths of a second to seconds something is killed, stopped or frozen, and started again. At the end every
/// request has its own answer, once. What became of each is written to `chaos.jsonl` in the target folder, and judged from there.
/// The tests run the same for 20 seconds.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask chaos                          five minutes\n  cargo xtask chaos --minutes 30 \
                  --seed 7     the same faults at every run\n  cargo xtask chaos --rabbitmq 4.3"
)]
pub(crate) struct Arguments {
    /// How long faults happen
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
    /// Chooses the faults; printed at the start [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Which broker to use
    #[arg(long, value_enum, default_value_t = RabbitMqVersion::System)]
    rabbitmq: RabbitMqVersion,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let test = ["-p", "millrace-tests", "--test", "faults", "chaos", "--", "--nocapture"];
    let mut settings = vec![("MILLRACE_CHAOS_SECONDS", OsString::from((arguments.minutes * 60).to_string()))];
    settings.extend(arguments.seed.map(|seed| ("MILLRACE_SEED", seed.to_string().into())));
    let history = workspace::target()?.join("chaos.jsonl");
    eprintln!("History: {}", history.display());
    settings.push(("MILLRACE_HISTORY", history.into()));
    run_with(arguments.rabbitmq, &test.map(str::to_owned), &settings)
}
