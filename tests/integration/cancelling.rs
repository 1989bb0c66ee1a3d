//! Cancelled before it ran: never executed. Only one's own can be cancelled.

use std::process::Command;
use std::time::Duration;

use millrace_harness::models;
use millrace_harness::process::binary;
use millrace_producer::{Client, Code, Handle, Request};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually, milestone};
use ndarray::Array2;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);

async fn submit(client: &Client, value: f32) -> Handle {
    let row = Array2::from_elem((1, 4), value);
    client.submit(Request::new("slow").input_array("x", row.view()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_never_run() {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(1_500));
    let mut worker = stack.talkative_worker("w");
    let mut config = stack.client_config();
    config.requests.pack_linger_us = 0;
    let client = Client::connect(config).await.unwrap();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let first = submit(&client, 1.0).await;
    milestone(&mut worker, "running a batch").await;

    // One is dropped, one given up while it is awaited, one cancelled by a command, one by somebody else.
    drop(submit(&client, 2.0).await);
    let given_up = submit(&client, 3.0).await.outcome();
    assert!(tokio::time::timeout(Duration::from_millis(50), given_up).await.is_err());
    let theirs = foreign.request("slow.free", &rows(&[[5.0; 4]])).await;
    client.cancel([theirs.clone()]).await.unwrap();
    // Nobody's user: the broker knows it is `guest` of those that say so only.
    let anonymous = foreign.request("slow.free", &rows(&[[6.0; 4]])).await;
    let body = serde_json::json!({"format": 1, "cancel": [anonymous]}).to_string();
    let exchange = format!("{}.control", stack.prefix());
    foreign.publish_to(&exchange, "", foreign.properties(), body.as_bytes()).await;

    assert_eq!(first.outcome().await.unwrap().array::<f32>("y").unwrap()[[0, 0]], 1.0);
    let (answers, _) = foreign.answers(&[theirs.clone(), anonymous.clone()], PATIENCE).await;
    answers[&theirs].assert_row(5.0);
    assert_eq!(answers[&anonymous].status, Code::Cancelled.as_str());
    eventually("two runs are over", PATIENCE, async || worker.stderr().matches("ran a batch").count() == 2)
        .await;
    assert_eq!(worker.stderr().matches("running a batch").count(), 2, "what was cancelled was run");
    client.close().await;
}

#[tokio::test]
async fn a_command_cancels_by_id() {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(1_500));
    let mut worker = stack.talkative_worker("w");
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let own = || foreign.properties().with_user_id("guest".into());
    let first = foreign.request_with("slow.free", own(), &rows(&[[1.0; 4]])).await;
    milestone(&mut worker, "running a batch").await;
    let second = foreign.request_with("slow.free", own(), &rows(&[[2.0; 4]])).await;
    // As a queue on a node that is down, which RabbitMQ 4 keeps bound: the worker is told all the same.
    foreign.bind_full("control", "").await;
    let mut command = Command::new(binary("millrace").unwrap());
    let cancelled = command.args(["cancel", &second]).envs(stack.environment()).output().unwrap();
    assert!(cancelled.status.success(), "{cancelled:?}");
    let (answers, _) = foreign.answers(&[first.clone(), second.clone()], PATIENCE).await;
    answers[&first].assert_row(1.0);
    assert_eq!(answers[&second].status, Code::Cancelled.as_str());
}

#[test]
fn a_client_cancels_whatever_became_of_the_runtime_that_it_first_did_so_from() {
    let runtime = Runtime::new().unwrap();
    let (_stack, client) = runtime.block_on(async {
        let stack = Stack::new();
        let client = stack.client().await;
        (stack, client)
    });
    let cancel = || client.cancel(["nobody's".to_owned()]);
    let passing = Runtime::new().unwrap();
    passing.block_on(cancel()).unwrap();
    drop(passing);
    runtime.block_on(cancel()).unwrap();
    runtime.block_on(client.close());
}
