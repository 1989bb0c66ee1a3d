//! Load: what is sent when, by whom, and what became of it.
//!
//! Every client of the benchmark is a process of its own ([`process`]), as clients are: their CPU time can be told apart, and a
//! flood's client does not slow the one whose latency is measured.

mod closed;
mod library;
mod open;
mod outcome;
mod process;
mod raw;
mod schedule;
mod sender;
mod tally;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use library::config;
pub(crate) use outcome::{Counts, Outcome, Window};
pub(crate) use process::{Generator, serve};
pub(crate) use raw::sent;
pub(crate) use schedule::poisson;

use crate::workload::Workload;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ClientKind {
    /// Our library: its gate holds requests back after refusals.
    Library,
    /// The AMQP library alone, which goes on sending whatever the broker refuses.
    Raw,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Arrivals {
    /// So many at any time: the next goes out when one is answered. Finds the capacity, hides waiting.
    Closed { in_flight: usize },
    /// Independent users: exponential gaps, whatever the answers do.
    Poisson { per_second: f64 },
    /// All at once.
    Burst { count: usize },
}

/// One client's work. Times count from the common start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) url: String,
    pub(crate) prefix: String,
    pub(crate) workload: Workload,
    pub(crate) tier: String,
    pub(crate) client: ClientKind,
    pub(crate) arrivals: Arrivals,
    /// Nothing is meant for this time: part of an open loop's warm-up.
    pub(crate) quiet: Duration,
    /// Requests meant for this time are sent but not counted.
    pub(crate) warm_up: Duration,
    /// Of what counts; a burst's ends with its last answer.
    pub(crate) duration: Duration,
    /// Budget of each request.
    pub(crate) deadline: Duration,
    /// How long after its deadline a raw client's request counts as unanswered; the library never waits longer.
    pub(crate) give_up: Duration,
    /// How far the clock of a raw client is ahead, milliseconds.
    pub(crate) skew_ms: i64,
    /// Of the schedule: the same seed gives the same arrivals.
    pub(crate) seed: u64,
    /// Exists once the client may start; holds the start in milliseconds since the epoch.
    pub(crate) go: PathBuf,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// With a result; its time from the worker's intake to the model's outputs, its share of the model's time, and the rows of its
    /// batch.
    Served { in_worker: Duration, model: Duration, batch: u64 },
    /// The broker, or the client's gate for it, said that there is no room.
    Refused,
    /// Its deadline passed.
    Expired,
    /// Anything else.
    Failed(String),
    /// The broker confirmed it, and nothing came.
    Unanswered,
    /// This generator had too many open to send it.
    Unsent,
}

/// What a reply says of its time, in microseconds.
fn served(in_worker_us: u64, infer_us: u64, batch: u64) -> Fate {
    let batch = batch.max(1);
    Fate::Served {
        in_worker: Duration::from_micros(in_worker_us),
        model: Duration::from_micros(infer_us) / u32::try_from(batch).unwrap_or(u32::MAX),
        batch,
    }
}
