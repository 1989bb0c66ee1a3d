//! A slow worker stands back while a fast one has room, helps when it has not, and takes over when it is gone.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

use crate::MACHINE;

fn request() -> Request {
    Request::new("slow").input_array("x", Array2::from_elem((1, 4), 1.0f32).view()).unwrap()
}

/// Who answered so many requests, of which some are in flight at a time.
async fn answered(client: &Client, requests: usize, in_flight: usize) -> HashMap<String, usize> {
    let requests = stream::iter(std::iter::repeat_with(request).take(requests));
    let mut by_worker = HashMap::new();
    let mut results = client.stream(requests, in_flight);
    while let Some((_, result)) = results.next().await {
        *by_worker.entry(result.unwrap().worker().to_owned()).or_default() += 1;
    }
    by_worker
}

#[tokio::test]
async fn a_slow_worker_stands_back_helps_and_takes_over() {
    let _alone = MACHINE.lock().await;
    let settings = format!("max_batch_size = 4\n{ONE_INSTANCE}");
    let stack = Stack::new().config("slow", &settings).model("slow", &models::slow(4));
    let slow_stack = stack.beside().config("slow", &settings).model("slow", &models::slow(60));
    let named = |name| [("MILLRACE__WORKER__NAME", name)];
    let mut fast = stack.worker_with(&named("fast"));
    let mut slow = slow_stack.worker_with(&named("slow"));
    let client = stack.client().await;

    eventually("the slow worker stands back", READY, async || {
        let by_worker = answered(&client, 20, 1).await;
        !by_worker.contains_key("slow")
    })
    .await;
    let by_worker = answered(&client, 200, 2).await;
    assert!(by_worker.get("slow").copied().unwrap_or(0) <= 10, "{by_worker:?}");

    let by_worker = answered(&client, 4_000, 1_000).await;
    assert!(by_worker["slow"] >= 40, "with work for both it helps: {by_worker:?}");
    assert!(by_worker["fast"] >= 5 * by_worker["slow"], "each at its own pace: {by_worker:?}");

    fast.terminate();
    assert_eq!(fast.wait(READY).unwrap().code(), Some(0), "{}", fast.stderr());
    assert_eq!(answered(&client, 20, 4).await, HashMap::from([("slow".to_owned(), 20)]));
    client.close().await;
    slow.terminate();
    assert_eq!(slow.wait(READY).unwrap().code(), Some(0), "{}", slow.stderr());
}
