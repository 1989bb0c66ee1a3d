//! A worker that dies or is told to stop in the middle of a batch: nothing is lost, and nobody is answered twice.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_producer::Request;
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, milestone};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(60);

fn stack(queue_type: &str, millis: u64) -> Stack {
    Stack::new()
        .set("TOPOLOGY__QUEUE_TYPE", queue_type)
        .config("slow", &format!("max_batch_size = 4\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(millis))
}

/// Publishes requests of different tiers, and returns their ids.
async fn publish(foreign: &Foreign, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let tier = ["premium", "free"][number % 2];
        ids.push(foreign.request(&format!("slow.{tier}"), &rows(&[[number as f32; 4]])).await);
    }
    ids
}

#[tokio::test]
async fn a_killed_workers_batch_runs_elsewhere_with_quorum_queues() {
    a_killed_workers_batch_runs_elsewhere("quorum").await;
}

#[tokio::test]
async fn a_killed_workers_batch_runs_elsewhere_with_classic_queues() {
    a_killed_workers_batch_runs_elsewhere("classic").await;
}

async fn a_killed_workers_batch_runs_elsewhere(queue_type: &str) {
    let stack = stack(queue_type, 500);
    let mut doomed = stack.talkative_worker("doomed");
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let client = stack.client().await;
    let own_rows = |number: usize| Array2::from_elem((1, 4), number as f32);
    let requests =
        (0..6).map(|number| Request::new("slow").input_array("x", own_rows(number).view()).unwrap());
    let inferring =
        tokio::spawn(client.stream(stream::iter(requests.collect::<Vec<_>>()), 6).collect::<Vec<_>>());
    let ids = publish(&foreign, 6).await;
    milestone(&mut doomed, "running a batch").await;
    doomed.kill().unwrap();
    let answered = doomed.stderr().matches("ran a batch").count();
    let mut heir = stack.starting_worker(&[("MILLRACE__WORKER__NAME", "heir")]);
    milestone(&mut heir, "ready worker=").await;

    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    for (number, id) in ids.iter().enumerate() {
        answers[id].assert_row(number as f32);
    }
    let results = inferring.await.unwrap();
    assert_eq!(results.len(), 6);
    for (number, result) in results {
        assert_eq!(result.unwrap().array::<f32>("y").unwrap(), own_rows(number).into_dyn());
    }
    if answered == 0 {
        // Killed in its first batch, it can have answered nobody.
        assert!(answers.values().all(|answer| answer.worker == "heir"), "{answers:?}");
        assert_eq!(repeated, 0);
    }
    heir.terminate();
    assert_eq!(heir.wait(READY).unwrap().code(), Some(0));
    assert!(foreign.leftovers().await.is_empty(), "somebody was answered twice");
    client.close().await;
}

#[tokio::test]
async fn a_stopped_worker_answers_its_batch_and_gives_back_the_rest() {
    let stack = stack("quorum", 500);
    let mut leaving = stack.talkative_worker("leaving");
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    // More than the worker fetches ahead: some wait in its lanes, some on their way, some in the queue.
    let ids = publish(&foreign, 20).await;
    milestone(&mut leaving, "running a batch").await;
    leaving.terminate();
    assert_eq!(leaving.wait(READY).unwrap().code(), Some(0), "{}", leaving.stderr());
    let log = leaving.stderr();
    assert!(log.contains("drained"), "{log}");
    let (ran, started) = (log.matches("ran a batch").count(), log.matches("running a batch").count());
    assert_eq!(ran, started, "a batch that was begun was finished");

    let mut staying = stack.starting_worker(&[("MILLRACE__WORKER__NAME", "staying")]);
    milestone(&mut staying, "ready worker=").await;
    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    assert_eq!(repeated, 0, "what was answered was acknowledged, what was given back was not run");
    for (number, id) in ids.iter().enumerate() {
        answers[id].assert_row(number as f32);
    }
    let by = |name: &str| answers.values().filter(|answer| answer.worker == name).count();
    assert!(by("leaving") >= 1 && by("staying") >= 1, "{} and {}", by("leaving"), by("staying"));
    assert!(by("leaving") <= 4 * ran, "{} answers from {ran} batches of 4", by("leaving"));
    assert_eq!(by("leaving") + by("staying"), ids.len());
    staying.terminate();
    assert_eq!(staying.wait(READY).unwrap().code(), Some(0));
    assert!(foreign.leftovers().await.is_empty(), "somebody was answered twice");
}
