//! A worker beside one that is ten times slower: it must neither hoard requests nor spoil the tail.

use std::time::Duration;

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::{Arrivals, Outcome};
use crate::plot::{Bars, Layout};
use crate::report::{Figure, Section, Spread};
use crate::slow::Slowed;
use crate::stack::Stack;
use crate::workload::{Model, Workload};

/// Long enough beside the turns of being slowed down, and its rows cost the same in every batch.
const MODEL: Model = Model::Light;
const FACTOR: u32 = 10;
/// Offered while latency is measured, of the fast worker's capacity.
const LOAD: f64 = 0.5;
/// The workers have got to know each other by then.
const SETTLING: Duration = Duration::from_secs(20);
/// The loaded part lasts so many times the benchmark's duration: a 99th percentile needs hundreds of requests.
const LENGTH: u32 = 3;

struct Measured {
    /// Requests a second in a closed loop.
    fast: f64,
    slow: f64,
    both: f64,
    /// At the same offered load.
    fast_loaded: Outcome,
    both_loaded: Outcome,
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected(vec![Workload::of(MODEL)], Workload::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let mut results =
        context.alternate("unequal", &cases, Workload::name, |case, run| measure(context, *case, run))?;
    let runs = results.remove(0);
    let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(&runs, value);
    let mut section = Section::new(Scenario::Unequal, context);
    section.text(&format!("Saturated, closed loop, {}:", cases[0].name()));
    section.table(
        &["fast alone /s", "slow alone /s", "times slower", "both /s", "both of the sum"],
        vec![vec![
            spread(&|run| run.fast).text(0),
            spread(&|run| run.slow).text(0),
            spread(&|run| run.fast / run.slow).text(1),
            spread(&|run| run.both).text(0),
            spread(&|run| run.both / (run.fast + run.slow)).ratio(),
        ]],
    );
    section.figure(saturated(&runs)?);
    section.text(&format!("At {:.0} % of the fast one's capacity, open loop:", LOAD * 100.0));
    let row = |name: &str, outcome: fn(&Measured) -> &Outcome| {
        let quantile = |quantile: f64| spread(&|run| outcome(run).latency_ms(quantile)).text(1);
        let times = |run: &Measured| outcome(run).latency_ms(0.99) / run.fast_loaded.latency_ms(0.99);
        vec![name.to_owned(), quantile(0.5), quantile(0.99), spread(&times).ratio()]
    };
    section.table(
        &["workers", "p50 ms", "p99 ms", "p99, times the fast one alone"],
        vec![row("fast alone", |run| &run.fast_loaded), row("fast and slow", |run| &run.both_loaded)],
    );
    section.figure(loaded(&runs)?);
    Ok(Some(section))
}

fn saturated(runs: &[Measured]) -> Result<Figure> {
    let median = |value: fn(&Measured) -> f64| Spread::of(runs, value).median;
    let (fast, slow) = (median(|run| run.fast), median(|run| run.slow));
    let group = |name: &str, values| (String::from(name), values);
    let bars = Bars {
        y: "requests a second",
        layout: Layout::Stacked,
        parts: &["fast", "slow", "both together"],
        groups: vec![
            group("fast alone", vec![fast]),
            group("slow alone", vec![0.0, slow]),
            group("their sum", vec![fast, slow]),
            group("fast and slow", vec![0.0, 0.0, median(|run| run.both)]),
        ],
    };
    Ok(Figure {
        name: "unequal-saturated".to_owned(),
        caption: "Rate of a worker, of one slowed down tenfold, and of both".to_owned(),
        svg: bars.svg()?,
    })
}

fn loaded(runs: &[Measured]) -> Result<Figure> {
    let group = |name: &str, outcome: fn(&Measured) -> &Outcome| {
        let quantile = |quantile| Spread::of(runs, |run| outcome(run).latency_ms(quantile)).median;
        (name.to_owned(), vec![quantile(0.5), quantile(0.99)])
    };
    let bars = Bars {
        y: "latency from intended send time (ms)",
        layout: Layout::SideBySide,
        parts: &["p50", "p99"],
        groups: vec![
            group("fast alone", |run| &run.fast_loaded),
            group("fast and slow", |run| &run.both_loaded),
        ],
    };
    Ok(Figure {
        name: "unequal-loaded".to_owned(),
        caption: "Latency at half of the fast worker's capacity, alone and beside one slowed down tenfold"
            .to_owned(),
        svg: bars.svg()?,
    })
}

fn measure(context: &Context, case: Workload, run: u64) -> Result<Measured> {
    let load = |stack: &Stack<'_>, fast: f64| {
        let mut spec = stack.spec("premium", Arrivals::Poisson { per_second: fast * LOAD });
        (spec.warm_up, spec.duration, spec.seed) = (SETTLING, context.duration() * LENGTH, run);
        stack.run(vec![spec])?.outcomes.remove(0).checked()
    };
    let mut stack = Stack::new(context, "unequal", case)?;
    stack.start_worker(&[])?;
    let fast = stack.capacity()?;
    let fast_loaded = load(&stack, fast)?;
    stack.stop()?;

    // A slow machine starts slowly too: the warm-up from which a worker learns its pace must be slow already.
    let mut stack = Stack::new(context, "unequal", case)?;
    let slowed = stack.start_slowed_worker(FACTOR)?;
    let slow = stack.capacity()?;
    stack.start_worker(&[])?;
    let both = stack.capacity()?;
    let both_loaded = load(&stack, fast)?;
    drop::<Slowed>(slowed);
    stack.stop()?;
    eprintln!(
        "  fast {fast:.0}/s, slow {slow:.0}/s, both {both:.0}/s; p99 {:.1} ms alone, {:.1} ms with the slow one",
        fast_loaded.latency_ms(0.99),
        both_loaded.latency_ms(0.99)
    );
    Ok(Measured { fast, slow, both, fast_loaded, both_loaded })
}
