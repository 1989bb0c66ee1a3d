//! An open loop: latency from the intended send time against the offered load.

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::Arrivals;
use crate::plot::{Lines, Scale, Series};
use crate::report::{Figure, Section, Spread};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

/// Offered load in percent of the capacity. Above 100 the wait grows as long as the load lasts.
const LOADS: [u32; 9] = [10, 25, 40, 55, 70, 80, 90, 100, 120];
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// One run of a case.
struct Measured {
    /// Requests a second in a closed loop.
    capacity: f64,
    /// For each of [`LOADS`].
    points: Vec<Point>,
}

struct Point {
    /// Of what was offered, how much was answered in the same time.
    kept_up: f64,
    /// For each of [`QUANTILES`].
    latency_ms: [f64; 3],
    lag_ms: f64,
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let single = [Model::Tiny, Model::Mid, Model::Heavy].map(Workload::of);
    let packed = [Model::Tiny, Model::Mid].map(|model| Workload { is_packed: true, ..Workload::of(model) });
    let cases = context.selected([&single[..], &packed].concat(), Workload::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results =
        context.alternate("latency", &cases, Workload::name, |case, run| measure(context, *case, run))?;
    let mut section = Section::new(Scenario::Latency, context);
    for (case, runs) in cases.iter().zip(&results) {
        let capacity = Spread::of(runs, |run| run.capacity).text(0);
        section.text(&format!("**{}**, capacity in a closed loop {capacity} a second:", case.name()));
        let columns = [
            "offered, % of capacity",
            "answered of offered",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "generator's lag p99 ms",
        ];
        section.table(&columns, (0..LOADS.len()).map(|load| row(load, runs)).collect());
        section.figure(figure(case, runs)?);
    }
    Ok(Some(section))
}

fn measure(context: &Context, case: Workload, run: u64) -> Result<Measured> {
    let mut stack = Stack::new(context, "latency", case)?;
    stack.start_worker(&[])?;
    let capacity = stack.capacity()?;
    let mut points = Vec::new();
    for load in LOADS {
        let mut spec =
            stack.spec("premium", Arrivals::Poisson { per_second: capacity * f64::from(load) / 100.0 });
        spec.seed = run * 1000 + u64::from(load);
        let outcome = stack.run(vec![spec])?.outcomes.remove(0).checked()?;
        let point = Point {
            kept_up: outcome.answers as f64 / outcome.counts.offered.max(1) as f64,
            latency_ms: QUANTILES.map(|(_, quantile)| outcome.latency_ms(quantile)),
            lag_ms: outcome.lag_ms(0.99),
        };
        eprintln!(
            "  {load} % of {capacity:.0}/s: p50 / p99 / p99.9 {:.1} / {:.1} / {:.1} ms, lag {:.1} ms",
            point.latency_ms[0], point.latency_ms[1], point.latency_ms[2], point.lag_ms
        );
        points.push(point);
    }
    stack.stop()?;
    Ok(Measured { capacity, points })
}

fn row(load: usize, runs: &[Measured]) -> Vec<String> {
    let spread = |value: &dyn Fn(&Point) -> f64| Spread::of(runs, |run| value(&run.points[load]));
    vec![
        LOADS[load].to_string(),
        spread(&|point| point.kept_up).text(2),
        spread(&|point| point.latency_ms[0]).text(1),
        spread(&|point| point.latency_ms[1]).text(1),
        spread(&|point| point.latency_ms[2]).text(1),
        spread(&|point| point.lag_ms).text(1),
    ]
}

fn figure(case: &Workload, runs: &[Measured]) -> Result<Figure> {
    let line = |quantile: usize| {
        let median = |load: usize| Spread::of(runs, |run| run.points[load].latency_ms[quantile]).median;
        LOADS.iter().enumerate().map(|(index, &load)| (f64::from(load), median(index))).collect()
    };
    let series = QUANTILES.iter().enumerate();
    let lines = Lines {
        x: "offered load (% of capacity)",
        y: "latency from intended send time (ms)",
        scale: Scale::Logarithmic,
        series: series
            .map(|(index, (name, _))| Series { name: (*name).to_owned(), points: line(index) })
            .collect(),
    };
    Ok(Figure {
        name: format!("latency-{}{}", case.model.name(), if case.is_packed { "-packed" } else { "" }),
        caption: format!("Latency against offered load, {}", case.name()),
        svg: lines.svg()?,
    })
}
