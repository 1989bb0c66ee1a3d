//! Benchmarks of a real fleet: broker, one worker and one client on the same cores, each figure beside its limit.
//!
//! Started by `cargo xtask bench`, which builds it and the worker in release mode.

mod cpu;
mod echo;
mod fleet;
mod peers;
mod raw_loop;
mod report;
mod sample;
mod scenario;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::setup;

use echo::Payload;
use fleet::Rows;
use report::Measured;
use scenario::{Scenario, selected};

/// Measures throughput with single-row requests against the raw AMQP echo and the raw ONNX Runtime loop.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Alternated runs; the median counts, the spread is shown
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Write the table into docs/benchmarks.md
    #[arg(long)]
    write: bool,
    /// Compare with Celery, an aio-pika batcher and Mosec instead
    #[arg(long)]
    peers: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Internal: the echo's other end, as the worker is a process of its own too
    #[command(hide = true)]
    EchoServer {
        /// Broker address
        url: String,
        /// Queue consumed
        queue: String,
        /// Queue answered to
        reply_queue: String,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(Command::EchoServer { url, queue, reply_queue }) = &arguments.command {
        return runtime.block_on(echo::serve(url, queue, reply_queue));
    }
    if let Arguments { peers: true, seconds, runs, only, write, .. } = arguments {
        return peers::run(&runtime, &peers::Options { seconds, runs, only, write });
    }
    let library = setup::onnxruntime()?;
    let broker = Broker::start(BrokerOptions::default())?;
    let duration = Duration::from_secs(arguments.seconds);
    let scenarios: Vec<Scenario> = selected(&arguments.only);
    let mut report = report::Report::new(&broker, &arguments.only, arguments.seconds, arguments.runs);
    let raw = raw_loop::RawLoop::load(&library)?;
    for run in 0..arguments.runs {
        for scenario in &scenarios {
            eprintln!("run {} of {}: {}", run + 1, arguments.runs, scenario.name());
            let (fleet, sample) =
                runtime.block_on(fleet::measure(&broker, &library, scenario, Rows::Single, duration))?;
            let echo = |payload| {
                let queue_type = scenario.queue_type;
                runtime.block_on(echo::measure(&broker, queue_type, &sample, payload, duration))
            };
            let (bare, same) = (echo(Payload::Bare)?, echo(Payload::Same)?);
            let raw = raw.best(scenario, duration.min(Duration::from_secs(3)))?;
            report.add(scenario, Measured { fleet, bare, same, raw });
        }
    }
    report.print();
    if arguments.write {
        report.write()?;
    }
    Ok(())
}
