//! Free clients send several times the capacity; premium clients go on as before.

mod measure;
mod report;

use std::time::Duration;

use anyhow::Result;

pub(super) use measure::{LENGTH, PREMIUM_PART};

use crate::context::Context;
use crate::load::{ClientKind, Outcome};
use crate::report::Section;
use crate::workload::Model;

/// The model that floods are measured on: batching pays, and neither broker nor clients are the limit.
pub(super) const MODEL: Model = Model::Mid;

/// How much is offered, and by whom.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Times the capacity, both tiers together.
    factor: f64,
    client: ClientKind,
    /// Whether premium has an instance of its own.
    is_reserved: bool,
    /// How long a batch may take, where that is not the default.
    batch_time: Option<Duration>,
}

impl Case {
    fn name(&self) -> String {
        let client = if self.client == ClientKind::Library { "library" } else { "raw" };
        let reserved = if self.is_reserved { " reserved" } else { "" };
        format!("{:.0}x {client}{reserved}", self.factor)
    }
}

fn cases() -> Vec<Case> {
    let shared = |factor, client| Case { factor, client, is_reserved: false, batch_time: None };
    vec![
        shared(3.0, ClientKind::Library),
        shared(10.0, ClientKind::Library),
        shared(3.0, ClientKind::Raw),
        shared(10.0, ClientKind::Raw),
        Case { is_reserved: true, ..shared(3.0, ClientKind::Library) },
        Case { is_reserved: true, ..shared(10.0, ClientKind::Library) },
    ]
}

/// What holds without a flood.
#[derive(Clone)]
pub(super) struct Alone {
    /// Requests a second in a closed loop.
    pub(super) capacity: f64,
    /// Premium alone.
    pub(super) premium: Outcome,
}

/// The same, and what a flood is to be compared with.
#[derive(Clone)]
struct Calm {
    alone: Alone,
    /// Premium alone while the raw loop keeps a core busy: a bound from below, as if broker and clients did the others' requests for
    /// nothing.
    beside: Outcome,
    /// Results a second when no more than the capacity is offered, by clients like the flood's.
    open: f64,
}

/// What was seen in a flood.
pub(super) struct Flooded {
    pub(super) premium: Outcome,
    pub(super) free: Outcome,
    /// Cores kept busy: premium's client, the flood's, worker, broker.
    cores: [f64; 4],
    /// The broker's memory before, and at most.
    memory_mib: [u64; 2],
}

/// One run of a case.
struct Measured {
    calm: Calm,
    flooded: Flooded,
    /// CPU microseconds of a refused publish, client and broker, where the flood's clients ignore refusals.
    refusal_us: Option<f64>,
}

/// One run of the model at so many times its capacity, by library clients: what a peer's is compared with.
pub(super) fn once(
    context: &Context,
    factor: f64,
    batch_time: Option<Duration>,
    run: u64,
) -> Result<(Alone, Flooded)> {
    let case = Case { factor, client: ClientKind::Library, is_reserved: false, batch_time };
    let alone = measure::alone(context, case, run)?;
    let flooded = measure::flood(context, case, alone.capacity, run)?;
    Ok((alone, flooded))
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected(cases(), Case::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let has_raw = cases.iter().any(|case| case.client == ClientKind::Raw);
    let mut results: Vec<Vec<Measured>> = cases.iter().map(|_| Vec::new()).collect();
    for run in 0..context.options.runs {
        let progress = format!("flood, run {} of {}", run + 1, context.options.runs);
        let refusal_us = if has_raw { Some(measure::refusal(context)?) } else { None };
        // Each case is compared with what its own fleet does without a flood.
        let mut calms: [Option<Calm>; 2] = [None, None];
        for (case, results) in cases.iter().zip(&mut results) {
            let calm = &mut calms[usize::from(case.is_reserved)];
            let calm = match calm {
                Some(calm) => &*calm,
                None => {
                    eprintln!("{progress}: without a flood");
                    calm.insert(measure::calm(context, *case, run)?)
                }
            };
            eprintln!("{progress}: {}", case.name());
            let flooded = measure::flood(context, *case, calm.alone.capacity, run)?;
            let refusal_us = refusal_us.filter(|_| case.client == ClientKind::Raw);
            results.push(Measured { calm: calm.clone(), flooded, refusal_us });
        }
    }
    report::section(context, &cases, &results).map(Some)
}
