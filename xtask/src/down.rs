//! `cargo xtask down`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use millrace_harness::process::ProcessId;

use crate::state::{self, State};

/// A worker finishes its running batches first, and gives itself 25 s for that.
const GRACE: Duration = Duration::from_secs(30);

/// Stop what `cargo xtask up` started
///
/// Workers finish their running batches; the broker's data is removed, the workers' logs stay in target/up.
#[derive(Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<ExitCode> {
    let Some(state) = State::load()? else {
        println!("Nothing is up.");
        return Ok(ExitCode::SUCCESS);
    };
    // Side by side, or the grace periods would add up.
    std::thread::scope(|scope| {
        for worker in &state.workers {
            scope.spawn(|| stop(*worker));
        }
    });
    state.broker.stop()?;
    State::remove()?;
    println!("Stopped. The workers' logs are in {}.", state::directory()?.display());
    Ok(ExitCode::SUCCESS)
}

fn stop(worker: ProcessId) {
    if !worker.stop(GRACE) {
        eprintln!("worker {} did not stop within {GRACE:?} and was killed", worker.pid());
    }
}
