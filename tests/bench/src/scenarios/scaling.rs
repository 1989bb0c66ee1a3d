//! One to N workers on a model that leaves broker and client idle.

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::plot::{Lines, Scale, Series};
use crate::report::{Figure, Section, Spread, cores};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected((1..=cores().max(2)).collect(), name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results = context.alternate("scaling", &cases, name, |&workers, _| measure(context, workers))?;
    let mut section = Section::new(Scenario::Scaling, context);
    let rates: Vec<Spread> = results.iter().map(|runs| Spread::of(runs, |rate| *rate)).collect();
    let first = rates[0].median / cases[0] as f64;
    let rows = cases.iter().zip(&rates).map(|(workers, rate)| {
        let of_first = format!("**{:.2}**", rate.median / (first * *workers as f64));
        vec![workers.to_string(), rate.text(1), of_first]
    });
    section.table(&["workers", "requests /s", "of as many times the first"], rows.collect());
    let line = |name: &str, rate: &dyn Fn(usize) -> f64| Series {
        name: name.to_owned(),
        points: (0..cases.len()).map(|index| (cases[index] as f64, rate(index))).collect(),
    };
    let lines = Lines {
        x: "workers",
        y: "requests a second",
        scale: Scale::Linear,
        series: vec![
            line("measured", &|index| rates[index].median),
            line("as many times one", &|index| first * cases[index] as f64),
        ],
    };
    section.figure(Figure {
        name: "scaling".to_owned(),
        caption: format!("Rate against workers on {} cores, heavy", cores()),
        svg: lines.svg()?,
    });
    Ok(Some(section))
}

fn name(workers: &usize) -> String {
    format!("{workers} workers")
}

fn measure(context: &Context, workers: usize) -> Result<f64> {
    let mut stack = Stack::new(context, "scaling", Workload::of(Model::Heavy))?;
    (0..workers).try_for_each(|_| stack.start_worker(&[]))?;
    let rate = stack.capacity()?;
    stack.stop()?;
    eprintln!("  {rate:.1}/s");
    Ok(rate)
}
