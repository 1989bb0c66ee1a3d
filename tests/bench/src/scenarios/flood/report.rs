//! Tables and plots of the floods.

use anyhow::Result;

use super::measure::{DEADLINE, queue_length};
use super::{Case, Measured};
use crate::cli::Scenario;
use crate::context::Context;
use crate::load::{Counts, Outcome, Window};
use crate::plot::{Lines, Scale, Series};
use crate::report::{Figure, Section, Spread, cores};

type Of = fn(&Measured) -> &Outcome;
type Column = (&'static str, fn(&[Measured]) -> String);

const LATENCY: [Column; 9] = [
    ("premium alone p50 / p99 ms", |runs| both(runs, |run| &run.calm.alone.premium)),
    ("in the flood p50 / p99 ms", |runs| both(runs, |run| &run.flooded.premium)),
    ("of it in the worker", |runs| {
        let quantile =
            |quantile: f64| Spread::of(runs, |run| run.flooded.premium.in_worker_ms(quantile)).text(1);
        format!("{} / {}", quantile(0.5), quantile(0.99))
    }),
    ("p99, times alone", |runs| {
        Spread::of(runs, |run| run.flooded.premium.latency_ms(0.99) / run.calm.alone.premium.latency_ms(0.99))
            .ratio()
    }),
    ("alone beside a raw loop p50 / p99 ms", |runs| both(runs, |run| &run.calm.beside)),
    ("p99, times that", |runs| {
        Spread::of(runs, |run| run.flooded.premium.latency_ms(0.99) / run.calm.beside.latency_ms(0.99))
            .ratio()
    }),
    ("free p50 / p99 ms", |runs| both(runs, |run| &run.flooded.free)),
    ("generators' lag p99 ms: premium, free", |runs| {
        let lag = |outcome: Of| Spread::of(runs, |run| outcome(run).lag_ms(0.99)).text(1);
        format!("{}, {}", lag(|run| &run.flooded.premium), lag(|run| &run.flooded.free))
    }),
    ("broker memory MiB: before, most", |runs| {
        let memory = |at: usize| Spread::of(runs, |run| run.flooded.memory_mib[at] as f64).text(0);
        format!("{}, {}", memory(0), memory(1))
    }),
];

const RATES: [Column; 9] = [
    ("capacity /s", |runs| Spread::of(runs, |run| run.calm.alone.capacity).text(0)),
    ("served /s when that is offered", |runs| Spread::of(runs, |run| run.calm.open).text(0)),
    ("offered, times capacity", |runs| {
        let sent = |outcome: &Outcome| outcome.counts.offered as f64 / outcome.seconds;
        Spread::of(runs, |run| {
            (sent(&run.flooded.premium) + sent(&run.flooded.free)) / run.calm.alone.capacity
        })
        .text(1)
    }),
    ("served of capacity", |runs| Spread::of(runs, |run| served(run) / run.calm.alone.capacity).ratio()),
    ("of when capacity is offered", |runs| Spread::of(runs, |run| served(run) / run.calm.open).ratio()),
    ("in 1 s of capacity (goodput)", |runs| {
        let good = |outcome: &Outcome| outcome.in_time as f64 / outcome.seconds;
        Spread::of(runs, |run| {
            (good(&run.flooded.premium) + good(&run.flooded.free)) / run.calm.alone.capacity
        })
        .ratio()
    }),
    ("free's part of the served", |runs| {
        Spread::of(runs, |run| run.flooded.free.rate() / served(run)).ratio()
    }),
    ("CPU share of refused publishes", |runs| Spread::of(runs, refusing).text(2)),
    ("cores busy: premium, flood, worker, broker", |runs| {
        let part = |part: usize| format!("{:.2}", Spread::of(runs, |run| run.flooded.cores[part]).median);
        (0..4).map(part).collect::<Vec<_>>().join(" + ")
    }),
];

pub(super) fn section(context: &Context, cases: &[Case], results: &[Vec<Measured>]) -> Result<Section> {
    let mut section = Section::new(Scenario::Flood, context);
    let length = results.iter().flatten().map(|run| queue_length(run.calm.alone.capacity)).max().unwrap_or(0);
    let seconds = results.iter().flatten().map(|run| run.flooded.free.seconds).fold(0.0, f64::max);
    let deadline = DEADLINE.as_secs();
    section.text(&format!(
        "{seconds:.0} s each; budget of every request {deadline} s; a tier's queue holds up to {length} requests."
    ));
    for columns in [&LATENCY[..], &RATES] {
        let names: Vec<&str> = ["case"].into_iter().chain(columns.iter().map(|column| column.0)).collect();
        let rows = cases.iter().zip(results).map(|(case, runs)| {
            [case.name()].into_iter().chain(columns.iter().map(|column| column.1(runs))).collect()
        });
        section.table(&names, rows.collect());
    }
    section.text("What became of the requests, over all runs:");
    section.table(
        &[
            "case",
            "tier",
            "offered",
            "served",
            "refused",
            "expired",
            "failed",
            "unanswered",
            "unsent",
            "unaccounted",
        ],
        cases.iter().zip(results).flat_map(|(case, runs)| fates(case, runs)).collect(),
    );
    for (case, runs) in cases.iter().zip(results) {
        // The last run stands for all; medians over runs would smooth away what a plot over time is for.
        if let Some(run) = runs.last() {
            section.figure(figure(case, run)?);
        }
    }
    Ok(section)
}

fn both(runs: &[Measured], outcome: Of) -> String {
    let quantile = |quantile: f64| Spread::of(runs, |run| outcome(run).latency_ms(quantile)).text(1);
    format!("{} / {}", quantile(0.5), quantile(0.99))
}

fn served(run: &Measured) -> f64 {
    run.flooded.premium.rate() + run.flooded.free.rate()
}

/// Refused publishes a second times the cost of one, of all cores. Library clients' gates refuse most without a publish: none of
/// their refusals is counted.
fn refusing(run: &Measured) -> f64 {
    let refused = run.flooded.free.counts.refused as f64 / run.flooded.free.seconds;
    run.refusal_us.map_or(0.0, |refusal_us| refused * refusal_us / 1e6 / cores() as f64)
}

fn fates(case: &Case, runs: &[Measured]) -> Vec<Vec<String>> {
    let tiers: [(&str, Of); 2] = [("premium", |run| &run.flooded.premium), ("free", |run| &run.flooded.free)];
    let row = |(tier, outcome): (&str, Of)| {
        let sum =
            |count: &dyn Fn(&Counts) -> u64| runs.iter().map(|run| count(&outcome(run).counts)).sum::<u64>();
        let counts = [
            sum(&|counts| counts.offered),
            sum(&|counts| counts.served),
            sum(&|counts| counts.refused),
            sum(&|counts| counts.expired),
            sum(&|counts| counts.failed),
            sum(&|counts| counts.unanswered),
            sum(&|counts| counts.unsent),
        ];
        let unaccounted: i64 = runs.iter().map(|run| outcome(run).counts.unaccounted()).sum();
        let texts = counts.iter().map(u64::to_string).chain([unaccounted.to_string()]);
        [case.name(), tier.to_owned()].into_iter().chain(texts).collect()
    };
    tiers.map(row).into()
}

fn figure(case: &Case, run: &Measured) -> Result<Figure> {
    let line = |name: &str, outcome: &Outcome, value: fn(&Window) -> f64| Series {
        name: name.to_owned(),
        points: outcome.windows.iter().map(|window| (window.at_s, value(window))).collect(),
    };
    let lines = Lines {
        x: "seconds since the flood began",
        y: "latency from intended send time (ms)",
        scale: Scale::Logarithmic,
        series: vec![
            line("premium p50", &run.flooded.premium, |window| window.p50_ms),
            line("premium p99", &run.flooded.premium, |window| window.p99_ms),
            line("free p50", &run.flooded.free, |window| window.p50_ms),
            line("free p99", &run.flooded.free, |window| window.p99_ms),
        ],
    };
    Ok(Figure {
        name: format!("flood-{}", case.name().replace(' ', "-")),
        caption: format!("Latency of the answered requests during a flood, {}", case.name()),
        svg: lines.svg()?,
    })
}
