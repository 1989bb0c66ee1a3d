//! `cargo xtask bench`

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use millrace_harness::{process, setup};

use crate::workspace;

/// Measure a real fleet beside its limits: throughput, latency, floods, shares, scaling, cost
///
/// Builds in release mode, starts a private broker, and runs scenarios: `throughput`, `latency`, `flood`, `shares`, `unequal`,
/// `scaling`, `skew`, `tenants`, `cost`; all of them if none is named. Every case runs several times over, in turn, so that a
/// noisy minute hits all alike. Prints tables; `--write` puts them and their plots into docs/benchmarks. Keep the machine quiet
/// meanwhile: everything with the default settings takes about an hour and a half.
///
/// `peers` (or --peers), only when named, compares the fleet with what one would pick instead, each at its best settings with
/// the same model, row and requests in flight: Celery, a batching worker written by hand with aio-pika, and Mosec (HTTP, nothing
/// durable); and a premium tier's latency in a flood with Celery's. Its first run makes a Python environment in target/ (pinned packages, 230 MB; needs Python 3.11 or later).
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench -- --help                         what each scenario measures, and every option
  cargo xtask bench throughput --only tiny --runs 3   some cases of one scenario
  cargo xtask bench latency flood --write             two scenarios, tables and plots into docs
  cargo xtask bench --peers -- --only mid --runs 3    the fleet against its peers, with one model
  cargo xtask bench                                   all scenarios but `memory` and `peers`, 5 runs of 5 s")]
pub(crate) struct Arguments {
    /// Scenarios and options: --seconds, --runs, --only, --write
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SCENARIO|OPTION")]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::rabbitmq()?;
    let library = setup::onnxruntime()?;
    workspace::build(&["--release", "-p", "millrace-worker", "-p", "millrace-bench"])?;
    let binaries = workspace::target()?.join("release");
    let status = std::process::Command::new(binaries.join("millrace-bench"))
        // Where the user's `--` stands among what is passed on depends on what came before it.
        .args(arguments.arguments.iter().filter(|argument| *argument != "--"))
        .current_dir(workspace::root())
        .env(process::BINARIES_VARIABLE, &binaries)
        .env(setup::LIBRARY_VARIABLE, library)
        .status()
        .context("cannot run millrace-bench")?;
    Ok(workspace::exit_code(status))
}
