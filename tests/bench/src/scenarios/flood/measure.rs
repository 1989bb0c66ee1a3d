//! One run: first without a flood, then with.

use std::time::Duration;

use anyhow::Result;
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::topology::{Topology, apply};

use super::{Alone, Calm, Case, Flooded, MODEL};
use crate::context::Context;
use crate::load::{Arrivals, ClientKind, Outcome, Spec};
use crate::stack::Stack;
use crate::workload::Workload;

/// Premium's own rate, of the capacity: far below its share, so that every wait is the flood's doing.
pub(in crate::scenarios) const PREMIUM_PART: f64 = 0.05;
/// A flood lasts so many times the benchmark's duration.
pub(in crate::scenarios) const LENGTH: u32 = 6;
/// Budget of every request; an answer that comes later is no good.
pub(super) const DEADLINE: Duration = Duration::from_secs(1);
/// The time whose work may wait in a tier's queue, by Little's law: what is let in can be served before its deadline.
const QUEUE_TIME: Duration = Duration::from_millis(500);
/// A queue holds a batch or two even of the slowest model, and no more than keeps the broker quick.
const QUEUE_LENGTH: (f64, f64) = (64.0, 5_000.0);
/// Refused publishes a second while their cost is measured: enough to gather frames, few enough for one core.
const REFUSALS: f64 = 4_000.0;

/// The longest queue at this capacity.
pub(super) fn queue_length(capacity: f64) -> u64 {
    (capacity * QUEUE_TIME.as_secs_f64()).clamp(QUEUE_LENGTH.0, QUEUE_LENGTH.1) as u64
}

/// A worker as the case wants it.
fn stack<'a>(context: &'a Context, case: Case) -> Result<Stack<'a>> {
    let mut stack = Stack::new(context, "flood", Workload::of(MODEL))?;
    stack.configure_model(case.is_reserved.then_some("premium"), case.batch_time)?;
    stack.start_worker(&[])?;
    Ok(stack)
}

/// Capacity, and premium's latency at its own rate alone.
pub(super) fn alone(context: &Context, case: Case, run: u64) -> Result<Alone> {
    let stack = stack(context, case)?;
    let alone = alone_on(&stack, context, run)?;
    stack.stop()?;
    Ok(alone)
}

fn alone_on(stack: &Stack<'_>, context: &Context, run: u64) -> Result<Alone> {
    let capacity = stack.capacity()?;
    let premium = premium_alone(stack, context, capacity, run)?;
    eprintln!("  capacity {capacity:.0}/s; premium alone {}", latency(&premium));
    Ok(Alone { capacity, premium })
}

fn premium_alone(stack: &Stack<'_>, context: &Context, capacity: f64, run: u64) -> Result<Outcome> {
    let mut spec = premium(stack, capacity, run);
    spec.duration = context.duration() * 2;
    stack.run(vec![spec])?.outcomes.remove(0).checked()
}

/// Also premium's latency while something else keeps a core busy, and what is served when no more than the capacity is offered.
pub(super) fn calm(context: &Context, case: Case, run: u64) -> Result<Calm> {
    let mut stack = stack(context, case)?;
    let alone = alone_on(&stack, context, run)?;
    let capacity = alone.capacity;
    let beside = context
        .raw()?
        .beside(MODEL, MODEL.largest_batch(), || premium_alone(&stack, context, capacity, run))?;
    stack.limit_queues(queue_length(capacity))?;
    let once = Case { factor: 1.0, client: ClientKind::Library, ..case };
    let specs = both(&stack, context, once, capacity, run + 3000);
    let outcomes = stack.run(specs)?.outcomes.into_iter().map(Outcome::checked);
    let open: f64 = outcomes.map(|outcome| outcome.map(|outcome| outcome.rate())).sum::<Result<f64>>()?;
    stack.stop()?;
    eprintln!("  {open:.0}/s served when that is offered; premium beside a raw loop {}", latency(&beside));
    Ok(Calm { alone, beside, open })
}

fn latency(outcome: &Outcome) -> String {
    let [p50, p99] = [0.5, 0.99].map(|quantile| outcome.latency_ms(quantile));
    let [worker_p50, worker_p99] = [0.5, 0.99].map(|quantile| outcome.in_worker_ms(quantile));
    format!("p50 / p99 {p50:.1} / {p99:.1} ms (in the worker {worker_p50:.1} / {worker_p99:.1})")
}

/// Premium's client, and the flood's, which sends what premium leaves of the case's load, for the whole length. Premium has warmed
/// the fleet up by then; the flood has no warm-up, since its onset is what hurts.
fn both(stack: &Stack<'_>, context: &Context, case: Case, capacity: f64, seed: u64) -> Vec<Spec> {
    let mut premium = premium(stack, capacity, seed);
    premium.duration = context.duration() * LENGTH;
    let mut free = Spec { tier: "free".to_owned(), client: case.client, ..premium.clone() };
    free.quiet = free.warm_up;
    free.arrivals = Arrivals::Poisson { per_second: capacity * (case.factor - PREMIUM_PART) };
    free.seed = seed + 1000;
    vec![premium, free]
}

fn premium(stack: &Stack<'_>, capacity: f64, run: u64) -> Spec {
    let mut spec = stack.spec("premium", Arrivals::Poisson { per_second: capacity * PREMIUM_PART });
    (spec.deadline, spec.seed) = (DEADLINE, run);
    spec
}

/// Both tiers, premium's beside the flood's.
pub(super) fn flood(context: &Context, case: Case, capacity: f64, run: u64) -> Result<Flooded> {
    let mut stack = stack(context, case)?;
    stack.limit_queues(queue_length(capacity))?;
    let specs = both(&stack, context, case, capacity, run + 1000);
    let mut run = stack.run(specs)?;
    stack.stop()?;
    let free = run.outcomes.pop().ok_or_else(|| anyhow::anyhow!("two clients ran"))?;
    let premium = run.outcomes.remove(0);
    for (tier, outcome) in [("premium", &premium), ("free", &free)] {
        eprintln!(
            "  {tier} {}, {:.0} answers/s, {:?}, lag p99 {:.1} ms{}",
            latency(outcome),
            outcome.rate(),
            outcome.counts,
            outcome.lag_ms(0.99),
            outcome.first_failure.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default()
        );
    }
    let cpu = [run.client_cpu[0], run.client_cpu[1], run.worker_cpu, run.broker_cpu];
    let cores = cpu.map(|cpu| cpu.as_secs_f64() / run.seconds);
    Ok(Flooded { premium, free, cores, memory_mib: run.memory_mib })
}

/// CPU microseconds of a refused publish, client and broker: into a queue that is full and that nobody reads.
pub(super) fn refusal(context: &Context) -> Result<f64> {
    let workload = Workload::of(MODEL);
    let mut stack = Stack::new(context, "refusal", workload)?;
    let config = stack.config()?;
    let mut topology = Topology::shared(&config.topology);
    topology.extend(Topology::model(&config.topology, workload.model.name()));
    context.runtime.block_on(apply(&Connector::new(&config.broker, "bench")?, &topology))?;
    stack.limit_queues(1)?;
    let mut spec = stack.spec("free", Arrivals::Poisson { per_second: REFUSALS });
    spec.client = ClientKind::Raw;
    spec.duration = context.duration().min(Duration::from_secs(3));
    // The few that are taken must stay until the end, or their places are free again.
    (spec.deadline, spec.give_up) = (spec.warm_up + spec.duration, Duration::ZERO);
    let run = stack.run(vec![spec])?;
    stack.stop()?;
    let refused = run.outcomes[0].counts.refused.max(1) as f64;
    Ok((run.client_cpu[0] + run.broker_cpu).as_secs_f64() * 1e6 / refused)
}
