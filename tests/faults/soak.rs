//! A fleet under everything that users do, for as long as wanted: `cargo xtask evidence soak` runs it for an hour. What its processes hold
//! is sampled; after a third of the time it must not grow any more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Code, Datatype, Error, Request, Tensor};
use millrace_tests::faulty::{FAIL, LEAK_VARIABLE};
use millrace_tests::foreign::Foreign;
use millrace_tests::ledger::{Ledger, Limits, What};
use millrace_tests::load::{HISTORY_VARIABLE, Load, Plan, TIERS, judged, note_residue, say, seed, setting};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};
use millrace_tests::vitals::{Sample, Vitals};
use millrace_worker::inbound::remembered::REMEMBERED;
use ndarray::Array2;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Without being told to go on for longer.
const SHORT: u64 = 60;
const SINGLE: Plan = Plan { in_flight: 16, pause: Duration::from_millis(10), ..Plan::SINGLE };
const PACKED: Plan = Plan { burst: 4, ..SINGLE };
/// Between two of a caller's odd requests.
const ODD_EVERY: Duration = Duration::from_millis(25);
/// Odd requests under way, at most: a machine that stands still for seconds shall not leave behind the memory of all that were due.
const ODD_AT_ONCE: usize = 64;
/// Between two stops of the second worker.
const STOP_EVERY: Duration = Duration::from_secs(20);
const SAMPLES: u32 = 240;

/// What users do besides sending proper requests and waiting for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Odd {
    /// Of any length.
    Shape,
    /// The model fails on it.
    Failure,
    /// Its caller loses interest.
    Cancel,
    /// Its caller has no time.
    Expiry,
}

impl Odd {
    const ALL: [Self; 4] = [Self::Shape, Self::Failure, Self::Cancel, Self::Expiry];

    /// Sends one, and checks its end.
    async fn happen(self, client: Client, mut random: ChaCha8Rng) {
        let tier = TIERS[random.random_range(0..TIERS.len())];
        let row = |value| Array2::from_elem((1, 4), value);
        let request =
            |model, value: f32| Request::new(model).tier(tier).input_array("x", row(value).view()).unwrap();
        match self {
            Self::Shape => {
                let length = random.random_range(1..2_000i64);
                let tensor =
                    Tensor::new("x", Datatype::Fp32, vec![1, length], vec![1; 4 * length as usize].into());
                let response = client.infer(Request::new("wide").tier(tier).input(tensor.unwrap())).await;
                assert_eq!(response.unwrap().tensor("y").unwrap().shape, [1, length]);
            }
            Self::Failure => {
                let error = client.infer(request("fails", FAIL)).await.unwrap_err();
                assert!(matches!(error.code(), Code::BackendError | Code::Unavailable), "{error}");
            }
            Self::Cancel => drop(client.submit(request("m", 1.0)).await),
            Self::Expiry => {
                let budget = Duration::from_millis(random.random_range(1..20));
                let ended = client.infer(request("m", 1.0).deadline(budget)).await;
                let is_known = matches!(
                    ended.as_ref().map_err(Error::code),
                    Ok(_) | Err(Code::DeadlineExceeded | Code::Unavailable | Code::Overloaded)
                );
                assert!(is_known, "{ended:?}");
            }
        }
    }
}

/// Odd requests until told to stop; returns how many of each there were.
async fn oddities(client: Client, seed: u64, is_over: Arc<AtomicBool>) -> BTreeMap<Odd, usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut pace = tokio::time::interval(ODD_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut under_way, mut counts) = (JoinSet::new(), BTreeMap::new());
    while !is_over.load(Ordering::Relaxed) {
        pace.tick().await;
        if under_way.len() == ODD_AT_ONCE
            && let Some(ended) = under_way.join_next().await
        {
            ended.expect("it ended as it may");
        }
        let odd = Odd::ALL[random.random_range(0..Odd::ALL.len())];
        *counts.entry(odd).or_default() += 1;
        under_way.spawn(odd.happen(client.clone(), ChaCha8Rng::seed_from_u64(random.random())));
        while let Some(ended) = under_way.try_join_next() {
            ended.expect("it ended as it may");
        }
    }
    while let Some(ended) = under_way.join_next().await {
        ended.expect("it ended as it may");
    }
    counts
}

fn stack(broker: &Broker) -> Stack {
    let shared = format!("max_batch_size = 16\n{ONE_INSTANCE}");
    // Nothing else runs on it: its breaker stays open for most of the time, and that is part of it.
    Stack::on(&broker.amqp_url())
        .config("m", &shared)
        .model("m", &models::scale(1.0))
        .config("fails", &shared)
        .model("fails", &models::scale(1.0))
        .config("wide", &shared)
        .model("wide", &models::identity("FP32").unwrap())
}

/// A worker that stops now and then beside the one that is watched.
fn stop_now_and_then(stack: &Stack, is_over: &AtomicBool) -> usize {
    let mut stops = 0;
    while !is_over.load(Ordering::Relaxed) {
        let mut worker = stack.faulty_worker();
        worker.wait_for_line("ready worker=", READY).unwrap();
        let started = Instant::now();
        while started.elapsed() < STOP_EVERY && !is_over.load(Ordering::Relaxed) {
            assert!(worker.is_running(), "{}", worker.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
        worker.terminate();
        assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
        stops += 1;
    }
    stops
}

/// What a process of this id holds, sampled over a time.
async fn watch(pid: u32, duration: Duration) -> Vitals {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(duration / SAMPLES);
    let mut samples = Vec::new();
    while started.elapsed() < duration {
        ticks.tick().await;
        samples.push(Sample::of(pid, started.elapsed()).expect("it runs"));
    }
    Vitals::of(&samples)
}

/// The broker's connections, by their count over a time; few enough looks that they cost nothing.
async fn watch_connections(broker: Arc<Broker>, duration: Duration) -> Vec<usize> {
    let started = Instant::now();
    let mut ticks = tokio::time::interval((duration / 24).max(Duration::from_secs(2)));
    let mut counts = Vec::new();
    while started.elapsed() < duration {
        ticks.tick().await;
        let broker = Arc::clone(&broker);
        let list =
            move || broker.ctl(&["list_connections", "--no-table-headers", "pid"]).unwrap().lines().count();
        counts.push(tokio::task::spawn_blocking(list).await.unwrap());
    }
    counts
}

/// The most in the middle third and in the last.
fn most(counts: &[usize]) -> [usize; 2] {
    let third = counts.len() / 3;
    [&counts[third..2 * third], &counts[2 * third..]].map(|part| part.iter().copied().max().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: `cargo xtask faults`"]
async fn soak_holds_ever_the_same() {
    let duration = Duration::from_secs(setting("MILLRACE_SOAK_SECONDS").unwrap_or(SHORT));
    let seed = seed();
    let folder = tempfile::tempdir().unwrap();
    let kept = std::env::var_os(HISTORY_VARIABLE).map(PathBuf::from);
    let history = kept.unwrap_or_else(|| folder.path().join("history.jsonl"));
    let ledger = Arc::new(Ledger::create(&history).unwrap());
    let broker = Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Arc::new(stack(&broker));
    let broker = Arc::new(broker);
    let mut steady = stack.faulty_worker();
    steady.wait_for_line("ready worker=", READY).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (beside, told) = (Arc::clone(&stack), Arc::clone(&is_over));
    let stopping = tokio::task::spawn_blocking(move || stop_now_and_then(&beside, &told));
    let (client, numbers) = (stack.client().await, Arc::new(AtomicU32::new(1)));
    // Workers remember so many cancellations and then forget the oldest. Full, and most of them forgotten again, the tables are as large
    // as they become: their memory does not grow by them any more.
    client.cancel((0..3 * REMEMBERED).map(|number| number.to_string())).await.unwrap();
    let single = Load::start(client.clone(), SINGLE, &ledger, &numbers);
    let packed = Load::start(client.clone(), PACKED, &ledger, &numbers);
    let odd = tokio::spawn(oddities(client.clone(), seed, Arc::clone(&is_over)));
    let (worker, own, connections) = tokio::join!(
        watch(steady.pid(), duration),
        watch(std::process::id(), duration),
        watch_connections(Arc::clone(&broker), duration)
    );
    is_over.store(true, Ordering::Relaxed);
    let (odd, stops) = (odd.await.unwrap(), stopping.await.unwrap());
    for load in [single, packed] {
        load.end().await;
    }
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    for model in ["m", "wide", "fails"] {
        note_residue(&foreign, model, &ledger).await;
    }
    ledger.note("pending requests", What::Residue { count: client.pending() as u64 });
    client.close().await;
    let connections = most(&connections);
    say(format_args!("{} s, the second worker stopped {stops} times; besides {odd:?}", duration.as_secs()));
    say(format_args!("worker: {worker}"));
    say(format_args!("client: {own}"));
    say(format_args!(
        "broker: at most {} connections, then {}; {} MiB",
        connections[0],
        connections[1],
        broker.memory_mib().unwrap()
    ));
    let verdict = judged("soak", &ledger, Limits { starts: u32::MAX });
    assert_eq!(verdict.ok, verdict.requests, "{verdict}");
    for (what, vitals) in [("worker", worker), ("client", own)] {
        assert_eq!(vitals.growing(), [""; 0], "{what}: {vitals}");
    }
    assert!(connections[1] <= connections[0], "the broker's connections grew: {connections:?}");
    steady.terminate();
    assert_eq!(steady.wait(READY).unwrap().code(), Some(0), "{}", steady.stderr());
}

/// How a worker does for some seconds that leaves so much behind for each row.
async fn with_leak(bytes: usize) -> Vitals {
    const SECONDS: Duration = Duration::from_secs(6);
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let mut worker: WorkerProcess = stack.faulty_worker_with(&[(LEAK_VARIABLE, &bytes.to_string())]);
    worker.wait_for_line("ready worker=", READY).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(Ledger::create(&folder.path().join("history.jsonl")).unwrap());
    let load = Load::start(stack.client().await, SINGLE, &ledger, &Arc::default());
    let vitals = watch(worker.pid(), SECONDS).await;
    load.end().await.close().await;
    vitals
}

/// The check itself, on real processes: one that leaks fails it, one that does not passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leak_is_found_and_none_is_not() {
    let (leaking, sound) = tokio::join!(with_leak(256 << 10), with_leak(0));
    println!("with a leak: {leaking}\nwithout: {sound}");
    assert_eq!(leaking.growing(), ["memory"], "{leaking}");
    assert_eq!(sound.growing(), [""; 0], "{sound}");
}
