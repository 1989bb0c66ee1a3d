//! A requester that never reads its replies: its reply queue fills, and nobody else notices.

use std::time::Duration;

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_tests::foreign::{Foreign, rows, text_header};
use millrace_tests::load::{Plan, Trial, say};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
const SOME: usize = 400;
/// Replies that its queue takes.
const ROOM: usize = 5;
const REQUESTS: usize = 60;
/// For so long a reply that is refused is tried again.
const RETRY: Duration = Duration::from_secs(5);
const LONG_RETRY: Duration = Duration::from_secs(60);
/// What the worker may hold of answers, where that is to be little.
const LITTLE: usize = 1 << 20;

/// One of two requesters of a worker never reads.
struct Stuck {
    requester: Foreign,
    trial: Trial,
    _worker: WorkerProcess,
    _stack: Stack,
    broker: Broker,
}

impl Stuck {
    async fn begin() -> Self {
        Self::begin_with(RETRY, |stack| stack).await
    }

    async fn begin_with(retry: Duration, more: impl FnOnce(Stack) -> Stack) -> Self {
        let broker =
            Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
        let stack = Stack::on(&broker.amqp_url())
            .set("REPLIES__REFUSED_RETRY_SECONDS", &retry.as_secs().to_string())
            .config("m", ONE_INSTANCE)
            .model("m", &models::slow(2));
        let stack = more(stack);
        let worker = stack.worker();
        let requester = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
        let pattern = format!("^{}\\.{}$", stack.prefix(), requester.reply_queue().replace('.', "\\."));
        let limit = format!(r#"{{"max-length":{ROOM},"overflow":"reject-publish"}}"#);
        broker.ctl(&["set_policy", "--apply-to", "queues", "stuck", &pattern, &limit]).unwrap();
        let trial = Trial::begin("stuck reader", &stack, stack.client().await, Plan::SINGLE).await;
        trial.load().flows(SOME).await;
        Self { requester, trial, _worker: worker, _stack: stack, broker }
    }

    async fn requests(&self) {
        for number in 0..REQUESTS {
            self.requester.request("m.premium", &rows(&[[number as f32; 4]])).await;
        }
    }

    /// Kept for people, after a while; a bound on it keeps the worker's memory.
    async fn is_kept(&self) {
        let kept = async || self.requester.depth("dead").await as usize;
        eventually("what it did not read is kept", PATIENCE, async || kept().await + ROOM >= REQUESTS).await;
        // Those that are left, of which the queue has had room for some.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for _ in 0..kept().await {
            let letter = self.requester.get("dead").await.unwrap();
            assert_eq!(text_header(&letter, "x-dead-reason"), "reply_refused");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_reads_holds_up_nobody() {
    let stuck = Stuck::begin().await;
    stuck.requests().await;
    stuck.trial.load().flows(SOME).await;
    stuck.is_kept().await;
    stuck.trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_reads_large_answers_holds_up_nobody() {
    let stuck = Stuck::begin_with(LONG_RETRY, |stack| {
        let little = LITTLE.to_string();
        stack.set("REPLIES__MAX_IN_FLIGHT_BYTES", &little).model("large", &models::doubled())
    })
    .await;
    // Its answer is twice as long: eight of them fill it all.
    let row = vec![1.0f32; LITTLE / 64];
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, row.len()], "data": row});
    let body = json!({ "inputs": [input] }).to_string();
    for _ in 0..REQUESTS {
        stuck.requester.request("large.premium", body.as_bytes()).await;
    }
    let took = stuck.trial.load().flows(SOME).await;
    assert!(took < LONG_RETRY / 2, "the others waited for it: {took:?}");
    let queue = stuck.requester.reply_queue();
    let unread = async || stuck.requester.depth(&queue).await as usize;
    assert!(unread().await < REQUESTS, "its queue was never full");

    // It takes the rest, but for what has been tried often enough by then.
    stuck.broker.ctl(&["clear_policy", "stuck"]).unwrap();
    let kept = async || stuck.requester.depth("dead").await as usize;
    eventually("all is answered or kept", PATIENCE, async || unread().await + kept().await >= REQUESTS).await;
    for _ in 0..kept().await {
        stuck.requester.get("dead").await.unwrap();
    }
    stuck.trial.end().await;
}

/// Prints what is left of the others' throughput while its replies are tried again and again; all of them have the same tiers in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes: `cargo xtask faults`"]
async fn one_that_never_reads_slows_nobody_down() {
    const ROUNDS: usize = 5;
    const WINDOW: Duration = Duration::from_secs(3);
    let stuck = Stuck::begin().await;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let before = stuck.trial.load().pace(WINDOW).await;
        stuck.requests().await;
        // Its requests are served as any others: by now they have been.
        tokio::time::sleep(Duration::from_millis(500)).await;
        ratios.push(stuck.trial.load().pace(WINDOW).await / before);
        stuck.is_kept().await;
    }
    ratios.sort_by(f64::total_cmp);
    say(format_args!(
        "fault stuck reader: {:.3} of the others' throughput is left while {REQUESTS} replies are refused ({:.3} to {:.3} in {ROUNDS} rounds)",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    ));
    stuck.trial.end().await;
}
