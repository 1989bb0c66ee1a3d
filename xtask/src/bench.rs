//! `cargo xtask bench`

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use millrace_harness::{process, setup};

use crate::workspace;

/// Measure throughput beside its limits: the raw AMQP echo and the raw ONNX Runtime loop
///
/// Builds in release mode, starts a private broker, and runs every scenario in turn, several times over, so that a noisy minute
/// hits all alike. Prints a table; `--write` puts it into docs/benchmarks.md. Keep the machine quiet meanwhile.
///
/// With --peers the fleet is compared with what one would pick instead, each at its best settings with the same model, row and
/// requests in flight: Celery, a batching worker written by hand with aio-pika, and Mosec (HTTP, nothing durable). The first
/// time makes a Python environment in target/ (pinned packages, 230 MB; needs Python 3.11 or later).
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask bench                                   all scenarios, 5 runs of 5 s\n  \
                  cargo xtask bench -- --only tiny --runs 3           some of them\n  \
                  cargo xtask bench -- --write                        and put the table into docs/benchmarks.md\n  \
                  cargo xtask bench --peers                           against the peers\n  \
                  cargo xtask bench --peers -- --only mid --runs 3    with one model"
)]
pub(crate) struct Arguments {
    /// Compare with Celery, an aio-pika batcher and Mosec instead
    #[arg(long)]
    peers: bool,
    /// Passed on to the benchmark: --seconds, --runs, --only, --write
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::rabbitmq()?;
    let library = setup::onnxruntime()?;
    workspace::build(&["--release", "-p", "millrace-worker", "-p", "millrace-bench"])?;
    let binaries = workspace::target()?.join("release");
    let status = std::process::Command::new(binaries.join("millrace-bench"))
        .args(arguments.peers.then_some("--peers"))
        .args(&arguments.arguments)
        .current_dir(workspace::root())
        .env(process::BINARIES_VARIABLE, &binaries)
        .env(setup::LIBRARY_VARIABLE, library)
        .status()
        .context("cannot run millrace-bench")?;
    Ok(workspace::exit_code(status))
}
