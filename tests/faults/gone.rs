//! Requesters that go away: their reply queue is deleted while their requests are under way. Nothing loops, others are served, and what
//! still waits for them is not run.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::Request;
use millrace_tests::faulty::{self, RUNS_VARIABLE};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::load::{Plan, Trial, say};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(60);
const SOME: usize = 200;
/// More than the worker runs until it has found out, by far.
const WAITING: usize = 400;
/// Its rows have numbers from here on.
const FIRST: f32 = 1_000_000.0;

fn worker(stack: &Stack, runs: &Path) -> WorkerProcess {
    let mut worker = stack.faulty_worker_with(&[(RUNS_VARIABLE, runs.to_str().unwrap())]);
    worker.wait_for_line("ready worker=", READY).unwrap();
    worker
}

/// How often each number from `FIRST` on was run.
fn runs_of_the_gone(runs: &Path) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    faulty::runs(runs, |_, number| {
        if number >= FIRST {
            *counts.entry(number as u32).or_default() += 1;
        }
    })
    .unwrap();
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_one_that_is_gone_is_skipped() {
    let runs = tempfile::tempdir().unwrap();
    let stack = Stack::new()
        .config("m", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("m", &models::slow(20));
    // The queues are there; nothing takes from them before the requester is gone.
    let mut before = worker(&stack, runs.path());
    before.terminate();
    assert_eq!(before.wait(READY).unwrap().code(), Some(0), "{}", before.stderr());
    let gone = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    for number in 0..WAITING {
        gone.request("m.premium", &rows(&[[FIRST + number as f32; 4]])).await;
    }
    gone.delete(&gone.reply_queue()).await;
    let mut worker = worker(&stack, runs.path());
    let trial = Trial::begin("requester gone", &stack, stack.client().await, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    eventually("all that waited is done with", PATIENCE, async || gone.depth("request.m.premium").await == 0)
        .await;
    // Nobody's answers and requests are kept: there is nobody to tell.
    trial.end().await;
    let counts = runs_of_the_gone(runs.path());
    say(format_args!("fault requester gone: {} of its {WAITING} requests were run", counts.len()));
    assert!(counts.len() < WAITING / 2, "{} of {WAITING} ran for nobody", counts.len());
    assert!(counts.values().all(|&count| count == 1), "some ran again: {counts:?}");
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_reply_queue_is_deleted_has_it_again_and_is_served() {
    const REQUESTS: usize = 60;
    let stack = Stack::new()
        .config("m", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("m", &models::slow(20));
    let mut worker = stack.worker();
    let client = stack.client().await;
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let infer = async |value: f32| {
        let row = Array2::from_elem((1, 4), value);
        let request = Request::new("m").deadline(Duration::from_secs(5));
        client.infer(request.input_array("x", row.view()).unwrap()).await
    };
    let ended = Cell::new(0);
    let under_way = (0..REQUESTS).map(async |number| {
        let result = infer(number as f32).await;
        ended.set(ended.get() + 1);
        result
    });
    let deleting = async {
        eventually("some are answered", PATIENCE, async || ended.get() > 5).await;
        foreign.delete(&format!("reply.{}", client.reply_key())).await;
        assert!(ended.get() < REQUESTS, "nothing was under way any more");
    };
    let (results, ()) = tokio::join!(join_all(under_way), deleting);
    // Those whose replies went with the queue end by their deadline, typed; none hangs.
    let answered = results.iter().filter(|result| result.is_ok()).count();
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(error.is_retryable(), "{error}");
    }
    say(format_args!(
        "fault reply queue deleted: {answered} of {REQUESTS} requests of its client were answered all the same"
    ));
    eventually("it is served again", PATIENCE, async || infer(2.0).await.is_ok()).await;
    assert_eq!(client.pending(), 0);
    client.close().await;
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
}
