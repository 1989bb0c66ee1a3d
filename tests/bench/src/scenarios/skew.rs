//! Requesters whose clocks differ from the worker's: nothing may expire too early for it, and next to nothing start too late.

use std::time::Duration;

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::{Arrivals, ClientKind, Outcome};
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
        let sum = |count: fn(&Outcome) -> u64| runs.iter().map(count).sum::<u64>();
        let served = sum(|run| run.counts.served);
        let late = sum(|run| run.counts.late_starts);
        vec![
            case.name(),
            sum(|run| run.counts.offered).to_string(),
            served.to_string(),
            sum(|run| run.counts.refused).to_string(),
            sum(|run| run.counts.expired).to_string(),
            sum(|run| run.counts.early_expiries).to_string(),
            format!("{late} ({:.2} %)", 100.0 * late as f64 / served.max(1) as f64),
            sum(|run| run.counts.unanswered).to_string(),
            Spread::of(runs, |run| run.latency_ms(0.99)).text(0),
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
            "served, but started after the deadline",
            "unanswered",
            "p99 ms of the served",
        ],
        rows.collect(),
    );
    Ok(Some(section))
}

fn measure(context: &Context, case: Case, run: u64) -> Result<Outcome> {
    let mut stack = Stack::new(context, "skew", Workload::of(MODEL))?;
    stack.start_worker(&[])?;
    let capacity = stack.capacity()?;
    stack.limit_queues(((capacity * QUEUE_TIME.as_secs_f64()) as u64).max(64))?;
    let mut spec = stack.spec("free", Arrivals::Poisson { per_second: capacity * case.factor });
    (spec.client, spec.seed) = (ClientKind::Raw, run);
    (spec.deadline, spec.give_up) = (DEADLINE, GIVE_UP);
    spec.skew_ms = case.skew_minutes * 60_000;
    let outcome = stack.run(vec![spec])?.outcomes.remove(0);
    stack.stop()?;
    eprintln!("  {:?}", outcome.counts);
    Ok(outcome)
}
