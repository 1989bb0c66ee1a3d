//! A closed loop beside the raw AMQP echo and the raw ONNX Runtime loop.

use std::time::Duration;

use anyhow::Result;
use millrace_common::amqp::topology::QueueKind;

use crate::cli::Scenario;
use crate::context::Context;
use crate::limits::echo::{self, Echo, Payload};
use crate::limits::raw_loop::Pace;
use crate::load::Arrivals;
use crate::plot::{Bars, Layout};
use crate::report::{Figure, Section, Spread};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

const TIER: &str = "premium";
/// A pack is one message: with as many requests in flight as elsewhere, eight messages would be, against the echo's 512.
const MORE_PACKED: usize = 8;
/// The raw loop settles sooner than a fleet.
const RAW_LONGEST: Duration = Duration::from_secs(3);

/// One run of a case.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Requests a second.
    pub(super) rate: f64,
    /// CPU microseconds a request: client, worker, broker.
    pub(super) cpu_us: [f64; 3],
    /// Rows a second of the instances' CPU time.
    pub(super) rows_a_cpu_second: f64,
    /// Microseconds that the model ran for a row, as the worker's replies say.
    pub(super) model_us: f64,
    /// Rows of a batch, as the mean request sees it.
    pub(super) batch: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// The echo of the bodies alone.
    pub(super) bare: Echo,
    /// The echo of the very messages.
    pub(super) same: Echo,
    /// The raw loop at its best batch size, and at the fleet's.
    pub(super) best: Pace,
    pub(super) alike: Pace,
}

fn cases() -> Vec<Workload> {
    let of = |model| Workload::of(model);
    let json = |model| Workload { is_json: true, ..of(model) };
    let packed = |model| Workload { is_packed: true, ..of(model) };
    vec![
        json(Model::Digits),
        of(Model::Digits),
        of(Model::Tiny),
        Workload { queue_type: QueueKind::Classic, ..of(Model::Tiny) },
        json(Model::Tiny),
        packed(Model::Tiny),
        of(Model::Mid),
        json(Model::Mid),
        packed(Model::Mid),
        of(Model::Heavy),
        json(Model::Heavy),
        of(Model::MiniLm),
        json(Model::MiniLm),
        packed(Model::MiniLm),
    ]
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected(cases(), Workload::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results =
        context.alternate("throughput", &cases, Workload::name, |case, _| measure(context, *case))?;
    let mut section = Section::new(Scenario::Throughput, context);
    let columns = [
        "case",
        "fleet /s",
        "bare echo /s",
        "of bare",
        "same echo /s",
        "of same",
        "raw loop rows/s (batch)",
        "of loop",
        "rows a model CPU-second, of loop",
        "mean batch",
        "p50 / p99 ms",
        "CPU µs a request: client + worker + broker",
        "of the bare echo: both ends, broker",
        "of the same echo",
    ];
    section.table(&columns, cases.iter().zip(&results).map(|(case, runs)| row(case, runs)).collect());
    for model in [Model::Tiny, Model::Mid, Model::Heavy, Model::MiniLm] {
        let of_model: Vec<_> = cases.iter().zip(&results).filter(|(case, _)| case.model == model).collect();
        if !of_model.is_empty() {
            section.figure(figure(model, &of_model)?);
        }
    }
    Ok(Some(section))
}

/// A plot for each model: the fleet's rate beside the echoes' where the broker is the limit, else beside the raw loop's.
fn figure(model: Model, cases: &[(&Workload, &Vec<Measured>)]) -> Result<Figure> {
    let is_echo_bound = model == Model::Tiny;
    let group = |&(case, runs): &(&Workload, &Vec<Measured>)| {
        let median = |value: &dyn Fn(&Measured) -> f64| Spread::of(runs, value).median;
        let mut rates = vec![median(&|run| run.rate)];
        if is_echo_bound {
            rates.extend([median(&|run| run.bare.rate), median(&|run| run.same.rate)]);
        } else {
            rates.push(median(&|run| run.best.rows));
        }
        (case.name().replacen(model.name(), "", 1).trim().to_owned(), rates)
    };
    let bars = Bars {
        y: "requests or rows a second",
        layout: Layout::SideBySide,
        parts: if is_echo_bound { &["fleet", "bare echo", "same echo"] } else { &["fleet", "raw loop"] },
        groups: cases.iter().map(group).collect(),
    };
    Ok(Figure {
        name: format!("throughput-{}", model.name()),
        caption: format!("Throughput of {} beside its limits", model.name()),
        svg: bars.svg()?,
    })
}

fn row(case: &Workload, runs: &[Measured]) -> Vec<String> {
    let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(runs, value);
    let parts = |cpu_us: &dyn Fn(&Measured) -> [f64; 3]| {
        let part = |part: usize| spread(&|run| cpu_us(run)[part]).median;
        let all = spread(&|run| cpu_us(run).iter().sum()).median;
        format!("{:.0} + {:.0} + {:.0} = {all:.0}", part(0), part(1), part(2))
    };
    vec![
        case.name(),
        spread(&|run| run.rate).text(0),
        spread(&|run| run.bare.rate).text(0),
        spread(&|run| run.rate / run.bare.rate).ratio(),
        spread(&|run| run.same.rate).text(0),
        spread(&|run| run.rate / run.same.rate).ratio(),
        format!(
            "{} ({:.0})",
            spread(&|run| run.best.rows).text(0),
            spread(&|run| run.best.batch as f64).median
        ),
        spread(&|run| run.rate / run.best.rows).ratio(),
        spread(&|run| run.rows_a_cpu_second * run.best.cpu_us / 1e6).ratio(),
        format!("{:.1}", spread(&|run| run.batch).median),
        format!("{:.1} / {:.1}", spread(&|run| run.p50_ms).median, spread(&|run| run.p99_ms).median),
        parts(&|run| run.cpu_us),
        parts(&|run| run.bare.cpu_us),
        parts(&|run| run.same.cpu_us),
    ]
}

/// Fleet, both echoes and the raw loop, one after the other.
pub(super) fn measure(context: &Context, workload: Workload) -> Result<Measured> {
    let mut stack = Stack::new(context, "throughput", workload)?;
    stack.start_worker(&[])?;
    let sample = stack.sample()?;
    let in_flight = workload.in_flight() * if workload.is_packed { MORE_PACKED } else { 1 };
    let mut run = stack.run(vec![stack.spec(TIER, Arrivals::Closed { in_flight })])?;
    let outcome = run.outcomes.remove(0).checked()?;
    stack.stop()?;
    let answers = outcome.answers.max(1) as f64;
    anyhow::ensure!(!run.model_cpu.is_zero(), "no thread of the worker is named after the model");
    let echo = |payload| {
        let measuring =
            echo::measure(&context.broker, workload.queue_type, &sample, payload, context.duration());
        context.runtime.block_on(measuring)
    };
    let (bare, same) = (echo(Payload::Bare)?, echo(Payload::Same)?);
    let duration = context.duration().min(RAW_LONGEST);
    let measured = Measured {
        rate: outcome.rate(),
        cpu_us: [run.client_cpu[0], run.worker_cpu, run.broker_cpu]
            .map(|cpu| cpu.as_secs_f64() * 1e6 / answers),
        rows_a_cpu_second: answers / run.model_cpu.as_secs_f64(),
        model_us: outcome.model_s * 1e6 / answers,
        batch: outcome.batch,
        p50_ms: outcome.latency_ms(0.5),
        p99_ms: outcome.latency_ms(0.99),
        bare,
        same,
        best: context.raw()?.best(workload.model, duration)?,
        alike: context.raw()?.at(workload.model, outcome.batch.round() as usize, duration)?,
    };
    eprintln!(
        "  fleet {:.0}/s, echo {:.0}/s bare, {:.0}/s same, raw loop {:.0}/s at batch {}, mean batch {:.1}",
        measured.rate, bare.rate, same.rate, measured.best.rows, measured.best.batch, measured.batch
    );
    Ok(measured)
}
