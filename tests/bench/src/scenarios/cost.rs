//! CPU time of a request by process, beside its limit: the raw echo's round trip and the raw model's row at the same batch size.

use anyhow::Result;

use super::throughput::{Measured, measure};
use crate::cli::Scenario;
use crate::context::Context;
use crate::plot::{Bars, Layout};
use crate::report::{Figure, Section, Spread};
use crate::workload::{Model, Workload};

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = [Model::Tiny, Model::Mid, Model::Heavy, Model::MiniLm].map(Workload::of);
    let cases = context.selected(cases.to_vec(), Workload::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results = context.alternate("cost", &cases, Workload::name, |case, _| measure(context, *case))?;
    let mut section = Section::new(Scenario::Cost, context);
    let columns = [
        "case",
        "client µs",
        "worker µs",
        "broker µs",
        "all µs",
        "limit: bare echo + raw model at the same batch µs",
        "of limit",
        "batch",
        "model µs a row: fleet (wall) / raw (CPU)",
    ];
    section.table(&columns, cases.iter().zip(&results).map(|(case, runs)| row(case, runs)).collect());
    for (case, runs) in cases.iter().zip(&results) {
        section.figure(figure(case.model, runs)?);
    }
    Ok(Some(section))
}

fn total(run: &Measured) -> f64 {
    run.cpu_us.iter().sum()
}

fn limit(run: &Measured) -> f64 {
    run.bare.cpu_us + run.alike.cpu_us
}

fn row(case: &Workload, runs: &[Measured]) -> Vec<String> {
    let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(runs, value);
    let limits = spread(&|run| run.bare.cpu_us).median;
    let model = spread(&|run| run.alike.cpu_us).median;
    vec![
        case.name(),
        spread(&|run| run.cpu_us[0]).text(0),
        spread(&|run| run.cpu_us[1]).text(0),
        spread(&|run| run.cpu_us[2]).text(0),
        spread(&total).text(0),
        format!("{limits:.0} + {model:.0} = {:.0}", spread(&limit).median),
        spread(&|run| total(run) / limit(run)).ratio(),
        format!("{:.1}", spread(&|run| run.batch).median),
        format!("{:.0} / {model:.0}", spread(&|run| run.model_us).median),
    ]
}

/// A plot for each model: their costs lie three orders of magnitude apart.
fn figure(model: Model, runs: &[Measured]) -> Result<Figure> {
    let median = |value: &dyn Fn(&Measured) -> f64| Spread::of(runs, value).median;
    let fleet: Vec<f64> = (0..3).map(|part| median(&|run| run.cpu_us[part])).collect();
    let limit = vec![0.0, 0.0, 0.0, median(&|run| run.bare.cpu_us), median(&|run| run.alike.cpu_us)];
    let bars = Bars {
        y: "CPU time of a request (µs)",
        layout: Layout::Stacked,
        parts: &["client", "worker", "broker", "raw echo, all", "raw model"],
        groups: vec![("fleet".to_owned(), fleet), ("limit".to_owned(), limit)],
    };
    Ok(Figure {
        name: format!("cost-{}", model.name()),
        caption: format!("CPU time of a request of {} and its limit", model.name()),
        svg: bars.svg()?,
    })
}
