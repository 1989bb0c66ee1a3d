//! Expired before it ran: never executed, and told so.

use std::time::Duration;

use lapin::types::AMQPValue;
use millrace_harness::models;
use millrace_producer::{Client, Code, Error, Request};
use millrace_tests::foreign::{Foreign, rows, with_header};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually, milestone};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(30);
const BUDGET: Duration = Duration::from_millis(150);

/// Rows and batches that the only worker has run; it says so every second.
async fn ran(client: &Client) -> (u64, u64) {
    let fleet = client.fleet().await;
    let models: Vec<_> = fleet.workers().flat_map(|worker| &worker.models).collect();
    models.first().map_or((0, 0), |model| (model.rows, model.batches))
}

#[tokio::test]
async fn a_request_that_expires_behind_a_batch_is_never_run() {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(2000));
    let mut worker = stack.talkative_worker("w");
    let client = stack.client().await;
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;

    let first = foreign.request("slow.free", &rows(&[[1.0; 4]])).await;
    milestone(&mut worker, "running a batch").await;

    // In a higher tier, even: it is next, and has to wait for the running batch all the same.
    let mut hurried = Vec::new();
    for _ in 0..3 {
        let number = |number: u64| AMQPValue::LongLongInt(i64::try_from(number).unwrap());
        let properties = with_header(foreign.properties(), "x-budget-ms", number(BUDGET.as_millis() as u64));
        // Else one that a busy disk delays until the batch has ended would have all its time.
        let properties = with_header(properties, "x-published-ms", number(now_ms()));
        hurried.push(foreign.request_with("slow.premium", properties, &rows(&[[2.0; 4]])).await);
    }
    let row = Array2::from_elem((1, 4), 3.0f32);
    let request = Request::new("slow").tier("premium").input_array("x", row.view()).unwrap();
    let error = client.infer(request.deadline(BUDGET)).await.unwrap_err();
    // The client's own timer, with which a worker's answer may draw level: it does not wait for the worker to find out, nor for a
    // confirm that a busy disk delays.
    let is_late = error.code() == Code::DeadlineExceeded || matches!(error, Error::UnknownOutcome { .. });
    assert!(is_late, "{error}");
    assert_eq!(client.pending(), 0);
    let last = foreign.request("slow.free", &rows(&[[4.0; 4]])).await;

    let ids = [vec![first.clone(), last.clone()], hurried.clone()].concat();
    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    assert_eq!(repeated, 0);
    for id in &hurried {
        assert_eq!(answers[id].status, Code::DeadlineExceeded.as_str(), "{:?}", answers[id]);
    }
    for (id, value) in [(&first, 1.0), (&last, 4.0)] {
        answers[id].assert_row(value);
    }

    eventually("both runs are reported", PATIENCE, async || ran(&client).await.1 >= 2).await;
    assert_eq!(ran(&client).await, (2, 2), "what had expired was run");
    assert_eq!(worker.stderr().matches("running a batch").count(), 2);
    client.close().await;
}

#[tokio::test]
async fn a_budget_counts_from_publishing() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let _worker = stack.worker();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let number = |number: u64| AMQPValue::LongLongInt(i64::try_from(number).unwrap());
    let hour_ago = number(now_ms() - 3_600_000);
    let old = |budget| {
        let properties = with_header(foreign.properties(), "x-published-ms", hour_ago.clone());
        with_header(properties, "x-budget-ms", number(budget))
    };
    for (properties, status) in [
        (old(1_000), "deadline_exceeded"),
        (old(7_200_000), "ok"),
        // The broker's own clock let it through, so it is the publisher's that is wrong.
        (old(60_000).with_expiration("60000".into()), "ok"),
        (with_header(foreign.properties(), "x-budget-ms", number(0)), "deadline_exceeded"),
    ] {
        let what = format!("{properties:?}");
        foreign.request_with("m.free", properties, &rows(&[[1.0; 4]])).await;
        let answer = foreign.reply(PATIENCE).await.expect("an answer");
        assert_eq!(answer.status, status, "{what}");
    }
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("before the year 500 million")
}
