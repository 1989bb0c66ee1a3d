//! The fleet against what people would pick instead, on the same machine, in turn in the same run.

mod amqp;
mod answer;
mod closed_loop;
mod flood;
mod http;
mod peer;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use millrace_common::amqp::topology::QueueKind;
use millrace_harness::setup;

use super::flood::MODEL;
use crate::cli::Scenario;
use crate::context::Context;
use crate::load::Arrivals;
use crate::report::Section;
use crate::stack::Stack;
use crate::workload::{Model, Workload};
use closed_loop::Figures;
use peer::{Task, sources};
use table::{COLUMNS, Contestant, Run, figure, rows};

const TIER: &str = "premium";

fn cases() -> Vec<Workload> {
    let of = Workload::of;
    let classic = Workload { queue_type: QueueKind::Classic, ..of(Model::Tiny) };
    vec![of(Model::Tiny), classic, of(Model::Mid), of(Model::Heavy)]
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected(cases(), Workload::name);
    let has_flood = flood::NAME.contains(&context.options.only);
    if cases.is_empty() && !has_flood {
        return Ok(None);
    }
    let python = setup::python_environment(&environment()?, &sources().join("requirements.txt"))?;
    let results =
        context.alternate("peers", &cases, Workload::name, |case, _| measure(context, &python, *case))?;
    let mut section = Section::new(Scenario::Peers, context);
    if !cases.is_empty() {
        section
            .table(&COLUMNS, cases.iter().zip(&results).flat_map(|(case, runs)| rows(case, runs)).collect());
        for (case, runs) in cases.iter().zip(&results) {
            section.figure(figure(case, runs)?);
        }
    }
    if has_flood {
        let workload = Workload { queue_type: QueueKind::Classic, ..Workload::of(MODEL) };
        let expected = context.raw()?.answer(MODEL)?;
        let task = Task { context, python: &python, workload, expected: &expected };
        let each = |_: &&str, run| flood::measure(&task, run);
        let floods = context.alternate("peers", &[flood::NAME], ToString::to_string, each)?;
        let floods = &floods[0];
        section.text("Premium's latency in a flood of three times the capacity of each, *mid*:");
        section.table(&flood::COLUMNS, flood::rows(floods));
    }
    Ok(Some(section))
}

/// Everyone once.
fn measure(context: &Context, python: &Path, workload: Workload) -> Result<Run> {
    let expected = context.raw()?.answer(workload.model)?;
    let task = Task { context, python, workload, expected: &expected };
    let each = |who: &Contestant| {
        let figures = match who {
            Contestant::Single => fleet(&task, workload),
            Contestant::Packed => fleet(&task, Workload { is_packed: true, ..workload }),
            Contestant::Peer(peer) => context.runtime.block_on(peer.measure(&task)),
            Contestant::Limit => limit(&task),
        }?;
        eprintln!("  {}: {:.0}/s", who.name(), figures.rate);
        Ok(figures)
    };
    Contestant::ALL.iter().map(each).collect()
}

/// The fleet with as many requests in flight as its peers, packed or not.
fn fleet(task: &Task<'_>, workload: Workload) -> Result<Figures> {
    let mut stack = Stack::new(task.context, "peers", workload)?;
    stack.start_worker(&[])?;
    answer::check("the fleet", &stack.sample()?.reply.body, task.expected)?;
    let in_flight = task.workload.in_flight();
    let mut run = stack.run(vec![stack.spec(TIER, Arrivals::Closed { in_flight })])?;
    stack.stop()?;
    let outcome = run.outcomes.remove(0).checked()?;
    let answers = outcome.answers.max(1) as f64;
    Ok(Figures {
        rate: outcome.rate(),
        cpu_us: [run.client_cpu[0], run.worker_cpu, run.broker_cpu]
            .map(|cpu| cpu.as_secs_f64() * 1e6 / answers),
        p50_ms: outcome.latency_ms(0.5),
        p99_ms: outcome.latency_ms(0.99),
    })
}

/// The model alone, in this process.
fn limit(task: &Task<'_>) -> Result<Figures> {
    let (raw, model, duration) = (task.context.raw()?, task.workload.model, task.context.duration());
    let pace = raw.at(model, raw.best(model, duration)?.batch, duration)?;
    let run_ms = pace.batch as f64 / pace.rows * 1e3;
    Ok(Figures { rate: pace.rows, cpu_us: [0.0, pace.cpu_us, 0.0], p50_ms: run_ms, p99_ms: run_ms })
}

/// Beside the build profile's directory, in which this program lies: `cargo clean` removes it.
fn environment() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.context("this program lies outside a target directory")?.join("peers-venv"))
}
