//! Three tiers, all backlogged: shares of the model's time against weights.

use std::time::Duration;

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::Arrivals;
use crate::plot::{Bars, Layout};
use crate::report::{Figure, Section, Spread};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

/// With the default weights, and requests in flight for each worker: enough to keep every lane filled, the least weight offering
/// the most.
const TIERS: [(&str, f64, usize); 3] = [("premium", 8.0, 500), ("enterprise", 4.0, 500), ("free", 1.0, 700)];
/// Slow enough that lanes never run empty for want of deliveries.
const MODEL: Model = Model::Light;
const WORKERS: [usize; 3] = [1, 2, 4];
const SETTLE: Duration = Duration::from_secs(2);
/// Measured for so many times the benchmark's duration: a batch takes up to a tenth of a second.
const LENGTH: u32 = 2;
/// Whoever has the least share waits longest for its last request.
const DEADLINE: Duration = Duration::from_secs(300);

/// Shares of the model's time, tier by tier.
type Shares = [f64; 3];

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected(WORKERS.to_vec(), name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results = context.alternate("shares", &cases, name, |&workers, _| measure(context, workers))?;
    let mut section = Section::new(Scenario::Shares, context);
    let columns = ["workers", "premium", "enterprise", "free", "largest error"];
    let mut rows =
        vec![[vec!["by weight".to_owned()], wanted().map(percent).to_vec(), vec![String::new()]].concat()];
    rows.extend(cases.iter().zip(&results).map(|(workers, runs)| row(*workers, runs)));
    section.table(&columns, rows);
    section.figure(figure(&cases, &results)?);
    Ok(Some(section))
}

fn name(workers: &usize) -> String {
    format!("{workers} workers")
}

fn wanted() -> Shares {
    let all: f64 = TIERS.iter().map(|tier| tier.1).sum();
    TIERS.map(|tier| tier.1 / all)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn measure(context: &Context, workers: usize) -> Result<Shares> {
    let mut stack = Stack::new(context, "shares", Workload::of(MODEL))?;
    (0..workers).try_for_each(|_| stack.start_worker(&[]))?;
    let specs = TIERS.map(|(tier, _, in_flight)| {
        let mut spec = stack.spec(tier, Arrivals::Closed { in_flight: in_flight * workers });
        (spec.warm_up, spec.duration, spec.deadline) = (SETTLE, context.duration() * LENGTH, DEADLINE);
        spec
    });
    let run = stack.run(specs.to_vec())?;
    stack.stop()?;
    let mut times = [0.0; 3];
    for (time, outcome) in times.iter_mut().zip(run.outcomes) {
        *time = outcome.checked()?.model_s;
    }
    let all: f64 = times.iter().sum();
    let shares = times.map(|time| time / all);
    eprintln!("  {}", shares.map(percent).join(", "));
    Ok(shares)
}

fn error(shares: &Shares) -> f64 {
    shares.iter().zip(wanted()).map(|(share, wanted)| (share - wanted).abs()).fold(0.0, f64::max)
}

fn row(workers: usize, runs: &[Shares]) -> Vec<String> {
    let tier = |tier: usize| Spread::of(runs, |shares| shares[tier] * 100.0).text(1);
    let error = Spread::of(runs, |shares| error(shares) * 100.0).text(1);
    vec![workers.to_string(), tier(0), tier(1), tier(2), format!("{error} points")]
}

fn figure(cases: &[usize], results: &[Vec<Shares>]) -> Result<Figure> {
    let group = |(workers, runs): (&usize, &Vec<Shares>)| {
        let shares = (0..3).map(|tier| Spread::of(runs, |shares| shares[tier] * 100.0).median).collect();
        (name(workers), shares)
    };
    let by_weight = ("by weight".to_owned(), wanted().map(|share| share * 100.0).to_vec());
    let bars = Bars {
        y: "share of the model's time (%)",
        layout: Layout::SideBySide,
        parts: &TIERS.map(|tier| tier.0),
        groups: [by_weight].into_iter().chain(cases.iter().zip(results).map(group)).collect(),
    };
    Ok(Figure {
        name: "shares".to_owned(),
        caption: "Shares of the model's time while all tiers are backlogged".to_owned(),
        svg: bars.svg()?,
    })
}
