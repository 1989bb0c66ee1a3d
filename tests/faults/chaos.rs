//! Workers, the broker and a batch's client are killed and restarted at random, under load: nothing is lost, nobody is
//! answered wrongly.
//!
//! Short in the normal run; `cargo xtask chaos` runs it for minutes.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_harness::process::{Process, WorkerProcess};
use millrace_tests::batch::Batch;
use millrace_tests::foreign::Foreign;
use millrace_tests::ledger::{Ledger, Limits, What};
use millrace_tests::load::{HISTORY_VARIABLE, Load, Over, Plan, judged, note_residue, seed, setting};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};
use nix::sys::signal::Signal;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const WORKERS: usize = 3;
const PLAN: Plan = Plan { model: "slow", in_flight: 96, ..Plan::SINGLE };
const BATCH_LINES: usize = 4_000;
const BATCH_IN_FLIGHT: usize = 64;
const DRAINED: Duration = Duration::from_secs(120);

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

/// One of the workers.
struct Member {
    worker: WorkerProcess,
    /// How often it was told to stop.
    stops: usize,
}

impl Member {
    fn starting(stack: &Stack) -> Self {
        Self { worker: stack.starting_worker(&[]), stops: 0 }
    }

    fn stop(&mut self) {
        self.worker.terminate();
        self.stops += 1;
    }

    /// Checks that it has not ended by itself: killed by us; drained, or not all, since the broker went away meanwhile; told to stop
    /// once more while it drained, which ends it at once; or told before it could hear it.
    fn assert_ended_by_us(&mut self) {
        let status = self.worker.wait(READY).unwrap();
        let is_ours = match (status.code(), status.signal()) {
            (Some(0 | 1), _) => self.stops > 0,
            (Some(130), _) => self.stops > 1,
            (_, Some(signal)) => {
                signal == Signal::SIGKILL as i32 || (signal == Signal::SIGTERM as i32 && self.stops > 0)
            }
            _ => false,
        };
        assert!(is_ours, "ended with {status}, told to stop {} times:\n{}", self.stops, self.worker.stderr());
    }
}

/// Everything that can be hurt.
struct Fleet {
    stack: Stack,
    broker: Broker,
    workers: Vec<Member>,
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
        let workers = (0..WORKERS).map(|_| Member { worker: stack.worker(), stops: 0 }).collect();
        let batch = Batch::new(&stack, "slow", BATCH_LINES, BATCH_IN_FLIGHT);
        let submit = batch.start();
        Self { stack, broker, workers, batch, submit, batches: 0, faults: BTreeMap::new() }
    }

    fn happen(&mut self, fault: Fault, random: &mut ChaCha8Rng) {
        *self.faults.entry(fault).or_default() += 1;
        let member = &mut self.workers[random.random_range(0..WORKERS)];
        match fault {
            Fault::KillWorker => drop(member.worker.kill().unwrap()),
            Fault::StopWorker => member.stop(),
            Fault::FreezeWorker => {
                member.worker.signal(Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(random.random_range(500..3_000)));
                member.worker.signal(Signal::SIGCONT);
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
        for member in &mut self.workers {
            if !member.worker.is_running() {
                member.assert_ended_by_us();
                *member = Member::starting(&self.stack);
            }
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

    /// Whoever was told to stop by a fault may still be at it.
    fn drain(mut self) {
        for member in &mut self.workers {
            if member.stops > 0 {
                member.assert_ended_by_us();
                continue;
            }
            member.stop();
            let status = member.worker.wait(READY).unwrap();
            assert_eq!(status.code(), Some(0), "{}", member.worker.stderr());
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

fn wreak_havoc(mut fleet: Fleet, duration: Duration, seed: u64, over: Over) -> (Fleet, usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let started = Instant::now();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_workers_broker_and_clients_are_killed_at_random() {
    let duration = Duration::from_secs(setting("MILLRACE_CHAOS_SECONDS").unwrap_or(20));
    let seed = seed();
    let folder = tempfile::tempdir().unwrap();
    let kept = std::env::var_os(HISTORY_VARIABLE).map(PathBuf::from);
    let ledger = Ledger::create(&kept.unwrap_or_else(|| folder.path().join("history.jsonl"))).unwrap();
    let ledger = Arc::new(ledger);
    let fleet = tokio::task::spawn_blocking(Fleet::start).await.unwrap();
    let (url, prefix) = (fleet.stack.amqp_url().to_owned(), fleet.stack.prefix().to_owned());
    let load = Load::start(fleet.stack.client().await, PLAN, &ledger, &Arc::default());
    let over = load.over();
    let havoc = tokio::task::spawn_blocking(move || wreak_havoc(fleet, duration, seed, over));
    let (fleet, batches) = havoc.await.unwrap();
    let client = load.end().await;

    let foreign = Foreign::idle(&url, &prefix).await;
    note_residue(&foreign, PLAN.model, &ledger).await;
    ledger.note("pending requests", What::Residue { count: client.pending() as u64 });
    let faults: Vec<String> =
        fleet.faults.iter().map(|(fault, count)| format!("{count} {fault:?}")).collect();
    println!("{}; {batches} batches of {BATCH_LINES} lines, each answered once", faults.join(", "));
    let verdict = judged("chaos", &ledger, Limits { starts: u32::MAX });
    // Nothing was full and nobody gave up: every request has its result.
    assert_eq!(verdict.ok, verdict.requests, "{verdict}");
    client.close().await;
    tokio::task::spawn_blocking(move || fleet.drain()).await.unwrap();
}
