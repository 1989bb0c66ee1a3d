//! A requester that never reads its replies: its reply queue fills, and nobody else notices.

use std::time::Duration;

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_tests::foreign::{Foreign, rows, text_header};
use millrace_tests::load::{Plan, Trial};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const SOME: usize = 400;
/// Replies that its queue takes.
const ROOM: usize = 5;
const REQUESTS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_reads_holds_up_nobody() {
    let broker = Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Stack::on(&broker.amqp_url())
        .set("REPLIES__REFUSED_RETRY_SECONDS", "2")
        .config("m", ONE_INSTANCE)
        .model("m", &models::slow(2));
    let _worker = stack.worker();
    let stuck = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let pattern = format!("^{}\\.{}$", stack.prefix(), stuck.reply_queue().replace('.', "\\."));
    let limit = format!(r#"{{"max-length":{ROOM},"overflow":"reject-publish"}}"#);
    broker.ctl(&["set_policy", "--apply-to", "queues", "stuck", &pattern, &limit]).unwrap();
    let trial = Trial::begin("stuck reader", &stack, stack.client().await, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    let before = trial.load().flows(SOME).await;
    for number in 0..REQUESTS {
        stuck.request("m.premium", &rows(&[[number as f32; 4]])).await;
    }
    let meanwhile = trial.load().flows(SOME).await;
    println!("{SOME} requests of others took {before:?} before and {meanwhile:?} meanwhile");
    // Kept for people, after a while; a bound on it keeps the worker's memory.
    let kept = async || stuck.depth("dead").await as usize;
    eventually("what it did not read is kept", PATIENCE, async || kept().await + ROOM >= REQUESTS).await;
    for _ in 0..kept().await {
        let letter = stuck.get("dead").await.unwrap();
        assert_eq!(text_header(&letter, "x-dead-reason"), "reply_refused");
    }
    trial.end().await;
}
