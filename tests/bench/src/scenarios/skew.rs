//! Requesters whose clocks differ from the worker's: nothing may expire too early for it, and next to nothing start too late.

use std::time::Duration;

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::{Arrivals, ClientKind, Counts, Outcome, sent};
use crate::report::{Section, Spread};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

const MODEL: Model = Model::Mid;
/// Budget of each request.
const DEADLINE: Duration = Duration::from_secs(1);
/// The time whose work may wait in the queue: what is let in can be served in time, as in the floods.
const QUEUE_TIME: Duration = Duration::from_millis(500);
/// Long enough to see a late answer come.
const GIVE_UP: Duration = Duration::from_secs(3);

#[derive(Clone, Copy)]
struct Case {
    skew_minutes: i64,
    /// Offered, of the capacity.
    factor: f64,
}

impl Case {
    fn name(&self) -> String {
        let clock = match self.skew_minutes {
            0 => "same clock".to_owned(),
            minutes => format!("clock {minutes:+} min"),
        };
        format!("{clock}, {} of capacity", self.factor)
    }
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let clocks = [0, 5, -5];
    let cases =
        clocks.into_iter().flat_map(|skew_minutes| [0.1, 3.0].map(|factor| Case { skew_minutes, factor }));
    let cases = context.selected(cases.collect(), Case::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results = context.alternate("skew", &cases, Case::name, |case, run| measure(context, *case, run))?;
    let mut section = Section::new(Scenario::Skew, context);
    let rows = cases.iter().zip(&results).map(|(case, runs)| {
        let sum = |count: fn(&Counts) -> u64| runs.iter().map(|run| count(&run.outcome.counts)).sum::<u64>();
        let [started, late] = [|starts: &Starts| starts.all, |starts: &Starts| starts.late]
            .map(|count| runs.iter().map(|run| count(&run.starts)).sum::<u64>());
        vec![
            case.name(),
            sum(|counts| counts.offered).to_string(),
            sum(|counts| counts.served).to_string(),
            sum(|counts| counts.refused).to_string(),
            sum(|counts| counts.expired).to_string(),
            sum(|counts| counts.early_expiries).to_string(),
            format!("{late} ({:.2} %)", 100.0 * late as f64 / started.max(1) as f64),
            Spread::of(runs, |run| run.starts.latest.as_secs_f64() * 1e3).text(0),
            sum(|counts| counts.unanswered).to_string(),
            sum(|counts| counts.failed).to_string(),
            sum(|counts| counts.unsent).to_string(),
            Spread::of(runs, |run| run.outcome.latency_ms(0.99)).text(0),
        ]
    });
    section.table(
        &[
            "case",
            "offered",
            "served",
            "refused",
            "expired",
            "of them too early",
            "started after the deadline",
            "latest start, ms after publishing",
            "unanswered",
            "failed",
            "unsent",
            "p99 ms of the served",
        ],
        rows.collect(),
    );
    Ok(Some(section))
}

/// What the client saw, and what the worker did.
struct Measured {
    outcome: Outcome,
    starts: Starts,
}

/// Requests that the model has run, the warm-up's included.
#[derive(Default)]
struct Starts {
    all: u64,
    /// Of them: begun later than their deadline, by the clock that client and worker really share.
    late: u64,
    /// Longest time from publishing to the begin of the batch.
    latest: Duration,
}

impl Starts {
    /// Reads when each request was begun from the worker's log, and when it was sent from its identity.
    fn of(log: &str) -> Self {
        let mut starts = Self::default();
        for waited in log.lines().filter_map(waited) {
            starts.all += 1;
            starts.late += u64::from(waited > DEADLINE);
            starts.latest = starts.latest.max(waited);
        }
        starts
    }
}

/// From sending to the begin of the batch, by a line of the worker's access log; nothing for what the model did not run, for other
/// clients' requests, and for other lines.
fn waited(line: &str) -> Option<Duration> {
    let field = |name: &str| {
        let (_, value) = line.split_once(&format!(" {name}="))?;
        Some(value.split(' ').next()?.trim_matches('"'))
    };
    let micros = |name: &str| field(name)?.parse().ok().map(Duration::from_micros);
    let sent = sent(field("id")?)?;
    if field("outcome")? != "ok" {
        return None;
    }
    Some((micros("arrived_us")? + micros("queue_us")?).saturating_sub(sent))
}

fn measure(context: &Context, case: Case, run: u64) -> Result<Measured> {
    let mut stack = Stack::new(context, "skew", Workload::of(MODEL))?;
    stack.start_worker(&[("MILLRACE__FEATURES__ACCESS_LOG", "true")])?;
    let capacity = stack.capacity()?;
    stack.limit_queues(((capacity * QUEUE_TIME.as_secs_f64()) as u64).max(64))?;
    let mut spec = stack.spec("free", Arrivals::Poisson { per_second: capacity * case.factor });
    (spec.client, spec.seed) = (ClientKind::Raw, run);
    (spec.deadline, spec.give_up) = (DEADLINE, GIVE_UP);
    spec.skew_ms = case.skew_minutes * 60_000;
    let outcome = stack.run(vec![spec])?.outcomes.remove(0);
    let starts = Starts::of(&stack.workers[0].stderr());
    stack.stop()?;
    anyhow::ensure!(starts.all >= outcome.counts.served, "the worker's log lacks requests that were served");
    eprintln!(
        "  {:?}, {} of {} started late, the latest after {:.0} ms",
        outcome.counts,
        starts.late,
        starts.all,
        starts.latest.as_secs_f64() * 1e3
    );
    Ok(Measured { outcome, starts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_from_sending_to_the_begin_of_the_batch() {
        let line = |id: &str, outcome: &str| {
            format!(
                "1970-01-01T00:00:02.500000Z  INFO request id=\"{id}\" tenant=\"guest\" key=\"mid.free\" \
                 outcome=\"{outcome}\" attempt=1 queue_us=300000 infer_us=10000 batch_size=64 total_us=400000 \
                 arrived_us=2100000"
            )
        };
        assert_eq!(waited(&line("0000002a-1000000-7", "ok")), Some(Duration::from_millis(1_400)));
        assert_eq!(waited(&line("0000002a-1000000-7", "deadline_exceeded")), None);
        assert_eq!(waited(&line("019ac5f0-7b7c-7000-8000-000000000000", "ok")), None);
        assert_eq!(waited("ready worker=w"), None);
    }
}
