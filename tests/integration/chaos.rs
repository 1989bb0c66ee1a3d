//! Workers, the broker and a batch's client are killed and restarted at random, under load: nothing is lost, nobody is
//! answered twice.
//!
//! Short in the normal run; `cargo xtask chaos` runs it for minutes.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_harness::process::{Process, WorkerProcess};
use millrace_producer::{Client, Request};
use millrace_tests::batch::Batch;
use millrace_tests::foreign::Foreign;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;
use nix::sys::signal::Signal;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const WORKERS: usize = 3;
const TIERS: [&str; 3] = ["premium", "enterprise", "free"];
const IN_FLIGHT: usize = 96;
const BATCH_LINES: usize = 4_000;
const BATCH_IN_FLIGHT: usize = 64;
/// Longer than any of the faults lasts: a request may wait, it may not be given up.
const DEADLINE: Duration = Duration::from_secs(300);
const DRAINED: Duration = Duration::from_secs(120);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What happens to the fleet. The weights say how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillWorker,
    StopWorker,
    FreezeWorker,
    KillBroker,
    StopBroker,
    KillBatch,
    InterruptBatch,
}

const FAULTS: [(Fault, u32); 7] = [
    (Fault::KillWorker, 4),
    (Fault::StopWorker, 3),
    (Fault::FreezeWorker, 2),
    (Fault::KillBroker, 2),
    (Fault::StopBroker, 1),
    (Fault::KillBatch, 2),
    (Fault::InterruptBatch, 1),
];

/// Everything that can be hurt.
struct Fleet {
    stack: Stack,
    broker: Broker,
    workers: Vec<WorkerProcess>,
    batch: Batch,
    submit: Process,
    batches: usize,
    faults: BTreeMap<Fault, usize>,
}

impl Fleet {
    fn start() -> Self {
        let options = BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() };
        let broker = Broker::start(options).unwrap();
        let stack = Stack::on(&broker.amqp_url())
            .config("slow", &format!("max_batch_size = 8\n{ONE_INSTANCE}"))
            .model("slow", &models::slow(4));
        let workers = (0..WORKERS).map(|_| stack.worker()).collect();
        let batch = Batch::new(&stack, "slow", BATCH_LINES, BATCH_IN_FLIGHT);
        let submit = batch.start();
        Self { stack, broker, workers, batch, submit, batches: 0, faults: BTreeMap::new() }
    }

    fn happen(&mut self, fault: Fault, random: &mut ChaCha8Rng) {
        *self.faults.entry(fault).or_default() += 1;
        let worker = &mut self.workers[random.random_range(0..WORKERS)];
        match fault {
            Fault::KillWorker => drop(worker.kill().unwrap()),
            Fault::StopWorker => worker.terminate(),
            Fault::FreezeWorker => {
                worker.signal(Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(random.random_range(500..3_000)));
                worker.signal(Signal::SIGCONT);
            }
            Fault::KillBroker => {
                self.broker.kill().unwrap();
                self.broker.start_again().unwrap();
            }
            Fault::StopBroker => {
                self.broker.stop().unwrap();
                self.broker.start_again().unwrap();
            }
            Fault::KillBatch => drop(self.submit.kill().unwrap()),
            Fault::InterruptBatch => self.submit.signal(Signal::SIGINT),
        }
    }

    /// Starts again what has ended; a batch that is complete is checked and a new one begun.
    fn mend(&mut self) {
        for worker in self.workers.iter_mut().filter_map(|worker| (!worker.is_running()).then_some(worker)) {
            let status = worker.wait(READY).unwrap();
            // Killed by us; drained; or not all drained, since the broker went away meanwhile. Never by itself.
            let is_ours =
                status.signal() == Some(Signal::SIGKILL as i32) || matches!(status.code(), Some(0 | 1));
            assert!(is_ours, "a worker ended with {status}:\n{}", worker.stderr());
            *worker = self.stack.starting_worker(&[]);
        }
        if self.tend_batch() {
            self.batch = Batch::new(&self.stack, "slow", BATCH_LINES, BATCH_IN_FLIGHT);
            self.submit = self.batch.start();
        }
    }

    /// Starts an interrupted batch again. Returns whether it is complete.
    fn tend_batch(&mut self) -> bool {
        if self.submit.is_running() {
            return false;
        }
        match self.submit.wait(READY).unwrap().code() {
            Some(0) => {
                self.batch.assert_complete();
                self.batches += 1;
                return true;
            }
            // Killed, interrupted, or it found no broker.
            None | Some(130 | 3) => self.submit = self.batch.start(),
            Some(code) => panic!("submit ended with {code}:\n{}", self.submit.stderr()),
        }
        false
    }

    /// Nothing happens any more: the batch ends, the workers drain.
    fn settle(mut self) -> (Self, usize) {
        let started = Instant::now();
        self.mend();
        while !self.tend_batch() {
            assert!(started.elapsed() < DRAINED, "{} lines answered", self.batch.answered());
            std::thread::sleep(Duration::from_millis(50));
        }
        let batches = self.batches;
        (self, batches)
    }

    fn drain(mut self) {
        for worker in &mut self.workers {
            worker.terminate();
            assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
        }
    }
}

fn pick(random: &mut ChaCha8Rng) -> Fault {
    let total = FAULTS.iter().map(|(_, weight)| weight).sum();
    let mut left = random.random_range(0..total);
    let found = FAULTS.iter().find(|(_, weight)| {
        let is_it = left < *weight;
        left = left.saturating_sub(*weight);
        is_it
    });
    found.expect("the weights sum up").0
}

/// Ends the load, also after a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn wreak_havoc(mut fleet: Fleet, duration: Duration, seed: u64, is_over: &AtomicBool) -> (Fleet, usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let started = Instant::now();
    let over = Over(is_over);
    while started.elapsed() < duration {
        std::thread::sleep(Duration::from_millis(random.random_range(300..3_000)));
        let fault = pick(&mut random);
        println!("[{:>5.1} s] {fault:?}", started.elapsed().as_secs_f64());
        fleet.happen(fault, &mut random);
        std::thread::sleep(Duration::from_millis(random.random_range(0..1_500)));
        fleet.mend();
    }
    drop(over);
    println!("[{:>5.1} s] no more faults; what is in flight ends", started.elapsed().as_secs_f64());
    fleet.settle()
}

/// Sends requests until told not to, and checks each result. Returns how many there were.
async fn load(client: &Client, is_over: &AtomicBool) -> usize {
    let numbers = (0u32..).take_while(|_| !is_over.load(Ordering::Relaxed));
    let requests = numbers.map(|number| {
        let row = Array2::from_elem((1, 4), number as f32);
        let request = Request::new("slow").deadline(DEADLINE).tier(TIERS[number as usize % TIERS.len()]);
        request.input_array("x", row.view()).unwrap()
    });
    let mut results = client.stream(stream::iter(requests), IN_FLIGHT);
    let mut answered = Vec::new();
    while let Some((number, result)) = results.next().await {
        let response = result.unwrap_or_else(|error| panic!("request {number}: {error}"));
        let own = Array2::from_elem((1, 4), number as f32).into_dyn();
        assert_eq!(response.array::<f32>("y").unwrap(), own, "request {number}");
        if answered.len() <= number {
            answered.resize(number + 1, false);
        }
        assert!(!std::mem::replace(&mut answered[number], true), "request {number} was answered twice");
    }
    assert!(answered.iter().all(|&is_answered| is_answered), "a request has no answer");
    answered.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_workers_broker_and_clients_are_killed_at_random() {
    let duration = Duration::from_secs(setting("MILLRACE_CHAOS_SECONDS").unwrap_or(20));
    let seed = setting("MILLRACE_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("{} s of faults, seed {seed}", duration.as_secs());
    let fleet = tokio::task::spawn_blocking(Fleet::start).await.unwrap();
    let (url, prefix) = (fleet.stack.amqp_url().to_owned(), fleet.stack.prefix().to_owned());
    let client = fleet.stack.client().await;
    let is_over = std::sync::Arc::new(AtomicBool::new(false));
    let told = std::sync::Arc::clone(&is_over);
    let havoc = tokio::task::spawn_blocking(move || wreak_havoc(fleet, duration, seed, &told));
    let answered = load(&client, &is_over).await;
    let (fleet, batches) = havoc.await.unwrap();
    let faults: Vec<String> =
        fleet.faults.iter().map(|(fault, count)| format!("{count} {fault:?}")).collect();
    println!(
        "{answered} requests and {batches} batches of {BATCH_LINES} lines, each answered once, through {}",
        faults.join(", ")
    );

    let foreign = Foreign::idle(&url, &prefix).await;
    for queue in TIERS.map(|tier| format!("request.slow.{tier}")) {
        eventually("second copies are done with", DRAINED, async || foreign.depth(&queue).await == 0).await;
    }
    for queue in ["dead", "dead.inbox"] {
        assert_eq!(foreign.depth(queue).await, 0, "{queue}");
    }
    assert_eq!(client.pending(), 0);
    client.close().await;
    tokio::task::spawn_blocking(move || fleet.drain()).await.unwrap();
}
