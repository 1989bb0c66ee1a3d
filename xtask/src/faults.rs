//! `cargo xtask faults`

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::test::{RabbitMqVersion, run_with};

/// Stops of workers at random moments; the tests make fewer.
const STOPS: u64 = 300;
/// Requests among which one is poison.
const POISON_AMONG: u64 = 10_000;
/// Seconds that a broker stands still.
const FREEZE: u64 = 60;

/// Run the whole fault suite: every fault under load, each judged by its ledger
///
/// Prints a line for each fault: what was sent, what became of it, and what is wrong, if anything. The tests run the same without the
/// faults that take minutes.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask faults                     all, in a quarter of an hour\n  cargo xtask faults network      \
                  \x20      those whose names contain it\n  cargo xtask faults --seed 7            the same faults again\n  cargo \
                  xtask faults --rabbitmq 4.3"
)]
pub(crate) struct Arguments {
    /// Only faults whose names contain one of these
    names: Vec<String>,
    /// Chooses what is random; printed at the start of each fault [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Which broker to use
    #[arg(long, value_enum, default_value_t = RabbitMqVersion::System)]
    rabbitmq: RabbitMqVersion,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut test = ["-p", "millrace-tests", "--test", "faults", "--"].map(str::to_owned).to_vec();
    test.extend(arguments.names.iter().cloned());
    test.extend(["--include-ignored", "--nocapture"].map(str::to_owned));
    let mut settings: Vec<(&str, OsString)> = vec![
        ("MILLRACE_STOPS", STOPS.to_string().into()),
        ("MILLRACE_POISON_AMONG", POISON_AMONG.to_string().into()),
        ("MILLRACE_FREEZE_SECONDS", FREEZE.to_string().into()),
    ];
    settings.extend(arguments.seed.map(|seed| ("MILLRACE_SEED", seed.to_string().into())));
    run_with(arguments.rabbitmq, &test, &settings)
}
