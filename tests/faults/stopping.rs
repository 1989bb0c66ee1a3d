//! Workers told to stop at any moment: while they load, connect, serve, or are cut off; also twice. What they had not begun is back within
//! a second, and what they finished is not run again.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_tests::faulty::{self, RUNS_VARIABLE};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::load::{Plan, Trial, say, seed, setting};
use millrace_tests::proxy::{Proxy, Way, Weather};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use nix::sys::signal::Signal;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Longer than a stop takes in which nothing hinders the worker.
const AT_ONCE: Duration = Duration::from_secs(10);
const SHORT_GRACE: Duration = Duration::from_secs(4);

/// Stops a worker, by SIGTERM, that may not hear it yet: before the runtime runs the signal ends it, which loses nothing either.
fn stop(worker: &mut WorkerProcess, twice: bool) -> Duration {
    let started = Instant::now();
    worker.terminate();
    if twice {
        std::thread::sleep(Duration::from_millis(5));
        worker.terminate();
    }
    let status = worker.wait(READY).unwrap();
    let is_expected =
        matches!(status.code(), Some(0 | 130)) || status.signal() == Some(Signal::SIGTERM as i32);
    assert!(is_expected && (twice || status.code() != Some(130)), "{status}:\n{}", worker.stderr());
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_be_stopped_at_any_moment() {
    let stops = setting("MILLRACE_STOPS").unwrap_or(20);
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let stack = Stack::new()
        .config("m", &format!("max_batch_size = 4\n{ONE_INSTANCE}"))
        .model("m", &models::slow(20));
    let steady = stack.worker();
    let trial = Trial::begin("SIGTERM at any moment", &stack, stack.client().await, Plan::SINGLE).await;
    let mut slowest = Duration::ZERO;
    for number in 0..stops {
        let mut worker = stack.starting_worker(&[]);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        let took = tokio::task::spawn_blocking(move || stop(&mut worker, number % 10 == 9)).await.unwrap();
        slowest = slowest.max(took);
    }
    println!("{stops} stops at random moments, the slowest took {slowest:?}");
    assert!(slowest < AT_ONCE, "{slowest:?}");
    trial.load().flows(100).await;
    trial.end().await;
    drop(steady);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_cut_off_stops_within_its_grace() {
    let stack = Stack::new()
        .set("WORKER__GRACE_SECONDS", &SHORT_GRACE.as_secs().to_string())
        .config("m", ONE_INSTANCE)
        .model("m", &models::slow(2));
    let proxy = Proxy::before(stack.amqp_url()).await;
    let mut worker = stack.worker_with(&[("MILLRACE_AMQP_URL", proxy.amqp_url())]);
    let _other = stack.worker();
    let trial = Trial::begin("SIGTERM in a black hole", &stack, stack.client().await, Plan::SINGLE).await;
    trial.load().flows(100).await;
    proxy.set(Weather { there: Way::BlackHole, back: Way::BlackHole });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    worker.terminate();
    let status = tokio::task::spawn_blocking(move || worker.wait(READY).unwrap()).await.unwrap();
    println!("cut off and stopped: {status} after {:?}", started.elapsed());
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    // And a little for the end of the process on a busy machine.
    assert!(started.elapsed() < SHORT_GRACE + Duration::from_secs(2), "{:?}", started.elapsed());
    drop(proxy);
    trial.load().flows(100).await;
    trial.end().await;
}

/// Until what a stopped worker had not begun is in its queue again.
const BACK_WITHIN: Duration = Duration::from_secs(1);
const QUEUES: [&str; 3] = ["request.m.premium", "request.m.free", "solo.m"];
/// Of a run, of one request.
const RUN_MS: u64 = 50;
/// More than a worker gets done with before it is stopped, by far.
const BACKLOG: usize = 300;

async fn waiting(foreign: &Foreign) -> usize {
    let mut waiting = 0;
    for queue in QUEUES {
        waiting += foreign.depth(queue).await as usize;
    }
    waiting
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_worker_had_not_begun_is_back_and_what_it_had_is_not_run_again() {
    let stops = setting("MILLRACE_STOPS").map_or(4, |stops| stops / 10);
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let runs = tempfile::tempdir().unwrap();
    let stack = Stack::new()
        .config("m", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("m", &models::slow(RUN_MS));
    let worker = || stack.faulty_worker_with(&[(RUNS_VARIABLE, runs.path().to_str().unwrap())]);
    // Declares the queues.
    let mut first = worker();
    first.wait_for_line("ready worker=", READY).unwrap();
    let mut foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let (mut ids, mut slowest) = (Vec::new(), Duration::ZERO);
    let mut next = Some(first);
    for _ in 0..stops {
        let mut stopped = next.take().unwrap_or_else(&worker);
        while waiting(&foreign).await < BACKLOG {
            let number = (ids.len() + 1) as f32;
            let tier = ["premium", "free"][ids.len() % 2];
            ids.push(foreign.request(&format!("m.{tier}"), &rows(&[[number; 4]])).await);
        }
        stopped.wait_for_line("ready worker=", READY).unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
        let started = Instant::now();
        stopped.terminate();
        // All but those that are answered and the one that runs.
        eventually("it is all back", READY, async || {
            let answered = foreign.depth(&foreign.reply_queue()).await as usize;
            waiting(&foreign).await + answered + 1 >= ids.len()
        })
        .await;
        slowest = slowest.max(started.elapsed());
        let status = tokio::task::spawn_blocking(move || stopped.wait(READY).unwrap()).await.unwrap();
        assert_eq!(status.code(), Some(0));
        let answered = foreign.depth(&foreign.reply_queue()).await as usize;
        assert_eq!(
            waiting(&foreign).await + answered,
            ids.len(),
            "what was begun is answered, the rest is back"
        );
    }
    say(format_args!("fault SIGTERM: after {stops} stops unstarted work was back within {slowest:?}"));
    assert!(slowest < BACK_WITHIN, "{slowest:?}");
    foreign.listen().await;
    let _last = worker();
    let (answers, repeated) = foreign.answers(&ids, Duration::from_secs(120)).await;
    assert_eq!(repeated, 0);
    for (number, id) in ids.iter().enumerate() {
        answers[id].assert_row((number + 1) as f32);
    }
    let mut counts = BTreeMap::new();
    // A warm-up's rows are zeros.
    faulty::runs(runs.path(), |_, number| *counts.entry(number as u32).or_insert(0) += 1).unwrap();
    counts.remove(&0);
    assert_eq!(counts.len(), ids.len());
    let again: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(again.is_empty(), "finished work was run again: {again:?}");
}
