//! Free clients send several times the capacity; premium clients go on as before.

mod measure;
mod report;

use anyhow::Result;

use crate::context::Context;
use crate::load::{ClientKind, Outcome};
use crate::report::Section;
use crate::workload::{Model, Workload};

/// The model that floods are measured on: batching pays, and neither broker nor clients are the limit.
const MODEL: Model = Model::Mid;

/// How much is offered, and by whom.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Times the capacity, both tiers together.
    factor: f64,
    client: ClientKind,
}

impl Case {
    fn name(&self) -> String {
        let client = if self.client == ClientKind::Library { "library" } else { "raw" };
        format!("{:.0}x {client}", self.factor)
    }
}

/// What holds without a flood.
#[derive(Clone)]
struct Calm {
    /// Requests a second in a closed loop.
    capacity: f64,
    premium: Outcome,
    /// CPU microseconds of a refused publish, client and broker.
    refusal_us: Option<f64>,
}

/// One run of a case.
struct Measured {
    calm: Calm,
    /// Whether the flood's clients ignore refusals.
    is_raw: bool,
    premium: Outcome,
    free: Outcome,
    /// Cores kept busy: premium's client, the flood's, worker, broker.
    cores: [f64; 4],
    /// The broker's memory before, and at most.
    memory_mib: [u64; 2],
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let both = [ClientKind::Library, ClientKind::Raw];
    let cases =
        both.into_iter().flat_map(|client| [3.0, 10.0].map(|factor| Case { factor, client })).collect();
    let cases: Vec<Case> = context.selected(cases, Case::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let workload = Workload::of(MODEL);
    let has_raw = cases.iter().any(|case| case.client == ClientKind::Raw);
    let mut results: Vec<Vec<Measured>> = cases.iter().map(|_| Vec::new()).collect();
    for run in 0..context.options.runs {
        eprintln!("flood, run {} of {}: without a flood", run + 1, context.options.runs);
        let calm = measure::calm(context, workload, run, has_raw)?;
        for (case, results) in cases.iter().zip(&mut results) {
            eprintln!("flood, run {} of {}: {}", run + 1, context.options.runs, case.name());
            results.push(measure::flood(context, workload, *case, &calm, run)?);
        }
    }
    report::section(context, &cases, &results).map(Some)
}
