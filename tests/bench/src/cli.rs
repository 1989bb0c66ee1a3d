//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Measure a real fleet: private broker, workers and clients, each figure beside its limit
#[derive(Debug, Parser)]
#[command(
    name = "millrace-bench",
    bin_name = "cargo xtask bench --",
    max_term_width = 120,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = AFTER_HELP
)]
pub(crate) struct Arguments {
    /// What to measure, in this order; all but `memory` and `peers` by default
    #[arg(value_enum, value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<Scenario>,

    /// The same as naming `peers`
    #[arg(long)]
    pub(crate) peers: bool,

    #[command(flatten)]
    pub(crate) options: Options,

    #[command(subcommand)]
    pub(crate) internal: Option<Internal>,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask bench -- throughput --only tiny --runs 3     some cases of one scenario
  cargo xtask bench -- latency flood --write               two scenarios, their tables and plots into docs
  cargo xtask bench -- --seconds 1 --runs 1                everything once, to see that it works; the figures mean little

Runs alternate: every case once, then every case again, so that a noisy minute hits all alike. Keep the machine quiet
meanwhile. Ctrl-C ends broker, workers and clients too.";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each measurement; some take a multiple, named in their section of docs/benchmarks.md
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// Alternated runs; the median counts, the spread is shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) runs: u64,

    /// Only cases whose name contains this, such as `tiny` or `10x`
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) only: String,

    /// Write tables into docs/benchmarks.md and plots into docs/benchmarks/
    #[arg(long)]
    pub(crate) write: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Closed loop beside the raw AMQP echo and the raw ONNX Runtime loop
    Throughput,
    /// Open loop: latency from the intended send time at 10 to 120 % of the capacity
    Latency,
    /// Premium and free traffic while free clients send 3 and 10 times the capacity
    Flood,
    /// Three backlogged tiers on 1, 2 and 4 workers: shares of the model's time against weights
    Shares,
    /// A worker beside one ten times slower
    Unequal,
    /// Rate of 1 to N workers, one for each core
    Scaling,
    /// Requesters whose clocks are five minutes off, idle and at three times the capacity
    Skew,
    /// One tenant queues 10,000 requests, then another 100
    Tenants,
    /// CPU time of a request by process beside its limit
    Cost,
    /// The worker's memory over half an hour of mixed shapes; only when named
    Memory,
    /// Celery, an aio-pika batcher and Mosec beside the fleet, and Celery with priorities in a flood; only when named
    Peers,
}

impl Scenario {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Flood => "flood",
            Self::Shares => "shares",
            Self::Unequal => "unequal",
            Self::Scaling => "scaling",
            Self::Skew => "skew",
            Self::Tenants => "tenants",
            Self::Cost => "cost",
            Self::Memory => "memory",
            Self::Peers => "peers",
        }
    }

    /// Whether it is measured without being named.
    pub(crate) fn is_default(self) -> bool {
        !matches!(self, Self::Memory | Self::Peers)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Internal {
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
    /// Internal: one client
    #[command(hide = true)]
    Generate {
        /// What it is to do
        spec: PathBuf,
    },
}
