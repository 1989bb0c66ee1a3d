//! `cargo xtask compose-test`

mod engine;
mod images;
mod load;
mod stack;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use self::engine::Container;
use self::load::Load;
use self::stack::{Compose, Stack};
use crate::{fleet, workspace};

/// A broker's first start on a busy machine takes most of it.
const PATIENCE: Duration = Duration::from_secs(180);
const WORKERS: usize = 3;
/// The default configuration's, on the broker as the worker names them.
const QUEUES: [&str; 3] =
    ["millrace.request.digits.premium", "millrace.request.digits.enterprise", "millrace.request.digits.free"];
/// Enough for some seconds of load, so that the kill comes in the midst of it.
const LINES: usize = 20_000;

/// Bring the stack of compose/ up for real, try it, and remove it
///
/// Wants a Docker engine and Compose (`docker compose` or `docker-compose`). Makes every image of Debian packages and of what
/// cargo builds here, so that no image has to be pulled; the first time that takes some minutes and root. Then, under a
/// project name and ports of its own: everything healthy, the demo's accuracy, three consumers a queue with three workers, no
/// answer lost when one is killed under load, the others drain, `down` leaves nothing behind. Images stay for the next time.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask compose-test\n  cargo xtask compose-test --prepare    only the images, for \
                  compose/docker-compose.debian.yml by hand\n  cargo xtask compose-test --official   pulls, and builds \
                  compose/Dockerfile"
)]
pub(crate) struct Arguments {
    /// Only make the images
    #[arg(long)]
    prepare: bool,
    /// Test docker-compose.yml without the override: needs a registry
    #[arg(long, conflicts_with = "prepare")]
    official: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Clock(Instant::now());
    let compose = Compose::find(!arguments.official)?;
    clock.tell("images");
    let binaries = fleet::build()?;
    if !arguments.official {
        images::prepare(&binaries)?;
    }
    compose.build()?;
    images::remove_replaced()?;
    if arguments.prepare {
        println!("Start the stack with: {}", compose.by_hand());
        return Ok(ExitCode::SUCCESS);
    }
    let stack = Stack::new(compose)?;
    let result = scenario(&stack, &binaries, &clock);
    if result.is_err() {
        stack.show_logs();
    }
    clock.tell("down");
    let removed = stack.down();
    result?;
    removed?;
    clock.tell("passed; the images stay, for the next time");
    Ok(ExitCode::SUCCESS)
}

fn scenario(stack: &Stack, binaries: &Path, clock: &Clock) -> Result<()> {
    clock.tell("up");
    stack.up(&[])?;
    healthy(stack, "rabbitmq", 1)?;
    healthy(stack, "worker", 1)?;
    clock.tell("healthy; limits and demo");
    limits(stack)?;
    demo(stack)?;
    clock.tell(&format!("{WORKERS} workers"));
    stack.up(&["--no-deps", "--no-recreate", "--scale", &format!("worker={WORKERS}"), "worker"])?;
    let workers = healthy(stack, "worker", WORKERS)?;
    consumers(stack, WORKERS)?;
    clock.tell(&format!("{LINES} requests, a worker killed in the midst"));
    let victim = &workers[0];
    let load = Load::start(binaries, &stack.amqp_url()?, LINES)?;
    kill_under_load(load, victim)?;
    consumers(stack, WORKERS - 1)?;
    clock.tell("workers drain");
    stack.compose(&["stop", "worker"])?;
    drained(stack, victim)
}

/// Waits until the service has `count` containers, all healthy.
fn healthy(stack: &Stack, service: &str, count: usize) -> Result<Vec<Container>> {
    eventually(&format!("{count} healthy {service}"), || {
        let containers = stack.containers(service)?;
        let running = containers.iter().all(|container| container.state.status != "exited");
        ensure!(running, "a container of {service} has ended");
        let is_reached = containers.len() == count && containers.iter().all(Container::is_healthy);
        Ok(is_reached.then_some(containers))
    })
}

/// `topology` ran by itself, too.
fn limits(stack: &Stack) -> Result<()> {
    let ended = end_of(stack, "topology")?;
    let code = ended.state.exit_code;
    ensure!(code == 0, "topology ended with exit code {code}:\n{}", engine::logs(&ended.id)?);
    let policies = stack.queues("policy")?;
    let is_limited = |&queue: &&str| policies.get(queue).is_some_and(|policy| !policy.is_empty());
    ensure!(QUEUES.iter().all(is_limited), "a queue has no limits: {policies:?}");
    Ok(())
}

fn end_of(stack: &Stack, service: &str) -> Result<Container> {
    eventually(&format!("the end of {service}"), || {
        Ok(stack.containers(service)?.into_iter().find(|container| container.state.status == "exited"))
    })
}

#[derive(Deserialize)]
struct Training {
    correct: usize,
    held_out: usize,
}

/// The demo ran by itself, as everyone sees it at their first `up`.
fn demo(stack: &Stack) -> Result<()> {
    let ended = end_of(stack, "demo")?;
    let table = engine::logs(&ended.id)?;
    println!("{table}");
    ensure!(ended.state.exit_code == 0, "the demo ended with exit code {}", ended.state.exit_code);
    let record = std::fs::read(workspace::root().join("compose/models/digits/training.json"))?;
    let Training { correct, held_out } = serde_json::from_slice(&record)?;
    let recorded = format!("({correct} of {held_out})");
    let accuracy =
        table.lines().find(|line| line.contains("accuracy")).context("the demo names no accuracy")?;
    // This run's, and the training script's.
    ensure!(accuracy.matches(&recorded).count() == 2, "the accuracy is not {recorded}: {accuracy}");
    Ok(())
}

fn consumers(stack: &Stack, wanted: usize) -> Result<()> {
    // The statistics of quorum queues lag some seconds.
    eventually(&format!("{wanted} consumers on each queue"), || {
        let counts = stack.queues("consumers")?;
        let wanted = wanted.to_string();
        let is_reached = QUEUES.iter().all(|&queue| counts.get(queue) == Some(&wanted));
        Ok(is_reached.then_some(()))
    })
}

fn kill_under_load(load: Load, victim: &Container) -> Result<()> {
    eventually("a tenth of the answers, some by the victim", || {
        let answers = load.answers()?;
        ensure!(answers.len() < LINES, "all was answered before a worker could be killed: use more lines");
        let is_under_way = answers.len() > LINES / 10 && answers.iter().any(|answer| answer.is_by(victim));
        Ok(is_under_way.then_some(()))
    })?;
    engine::docker(&["kill", &victim.id])?;
    let before = load.answers()?.len();
    let answers = load.finish(PATIENCE)?;
    let by_victim = answers.iter().filter(|answer| answer.is_by(victim)).count();
    println!(
        "killed after {before} of {LINES} answers; {by_victim} are the killed worker's; each line has one"
    );
    Ok(())
}

fn drained(stack: &Stack, victim: &Container) -> Result<()> {
    for worker in stack.containers("worker")? {
        let wanted = if worker.id == victim.id { 137 } else { 0 };
        let code = worker.state.exit_code;
        ensure!(code == wanted, "worker {} ended with {code}, not {wanted}", worker.name());
    }
    Ok(())
}

/// Asks again and again until there is an answer.
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().with_context(|| format!("while waiting for: {what}"))? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "after {PATIENCE:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Clock(Instant);

impl Clock {
    fn tell(&self, step: &str) {
        println!("[{:>4} s] {step}", self.0.elapsed().as_secs());
    }
}
