//! Benchmarks of a real fleet: broker, workers and clients on the same cores, each figure beside its limit.
//!
//! Started by `cargo xtask bench`, which builds it and the worker in release mode.

mod cli;
mod context;
mod cpu;
mod limits;
mod load;
mod plot;
mod report;
mod scenarios;
mod slow;
mod stack;
mod workload;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use cli::{Arguments, Internal, Scenario};
use context::Context;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &arguments.internal {
        Some(Internal::EchoServer { url, queue, reply_queue }) => {
            return runtime.block_on(limits::echo::serve(url, queue, reply_queue));
        }
        Some(Internal::Generate { spec }) => return runtime.block_on(load::serve(spec)),
        None => {}
    }
    let context = Context::new(runtime, arguments.options)?;
    let mut wanted = arguments.scenarios;
    if arguments.peers {
        // Named as well, it is not to run twice.
        wanted.retain(|scenario| *scenario != Scenario::Peers);
        wanted.push(Scenario::Peers);
    } else if wanted.is_empty() {
        wanted.extend(Scenario::value_variants().iter().filter(|scenario| scenario.is_default()));
    }
    for scenario in wanted {
        let Some(section) = scenarios::run(scenario, &context)? else {
            eprintln!("{}: no case contains `{}`", scenario.name(), context.options.only);
            continue;
        };
        section.print();
        // Each as it comes: a later failure must not cost what has been measured.
        if context.options.write {
            section.write()?;
        }
    }
    Ok(())
}
