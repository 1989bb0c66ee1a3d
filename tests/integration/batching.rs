//! Batching across requests: together where the model allows it, alone where it does not.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_producer::{Client, Code, Request, Response};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};
use ndarray::Array2;

/// Long enough for a client on a busy machine to have published everything.
const DELAY: &str = "max_batch_size = 16\ndynamic_batching = { max_queue_delay_microseconds = 300000 }\n";

fn rows(count: usize, value: f32) -> Array2<f32> {
    Array2::from_elem((count, 4), value)
}

/// Sends requests of these numbers of rows at once and checks that each gets the answer to its own rows.
async fn all_at_once(client: &Client, model: &str, sizes: &[usize]) -> Vec<Response> {
    let requests = sizes.iter().enumerate().map(|(position, &size)| {
        Request::new(model).input_array("x", rows(size, position as f32 + 1.0).view()).unwrap()
    });
    let mut responses: Vec<_> = client
        .stream(stream::iter(requests), sizes.len())
        .map(|(position, result)| (position, result.unwrap()))
        .collect()
        .await;
    responses.sort_by_key(|(position, _)| *position);
    for (position, response) in &responses {
        let own = rows(sizes[*position], *position as f32 + 1.0).into_dyn();
        assert_eq!(response.array::<f32>("y").unwrap(), own, "{model}, request {position}");
    }
    responses.into_iter().map(|(_, response)| response).collect()
}

fn batch_sizes(responses: &[Response]) -> Vec<u64> {
    responses.iter().map(|response| response.timing().batch_size).collect()
}

#[tokio::test]
async fn requests_share_batches_where_the_model_allows_it() {
    let with = |settings: &str| format!("{settings}{ONE_INSTANCE}");
    let stack = Stack::new()
        .config("together", &with(DELAY))
        .model("together", &models::scale(1.0))
        .config("alone", &with(&format!("batch_safe = false\n{DELAY}")))
        .model("alone", &models::scale(1.0))
        .config("unbatched", ONE_INSTANCE)
        .model("unbatched", &models::unbatched())
        .config("failing", &with(DELAY))
        .model("failing", &models::failing());
    let worker = stack.worker();
    let client = stack.client().await;

    let sizes = batch_sizes(&all_at_once(&client, "together", &[1; 64]).await);
    assert!(sizes.iter().any(|&size| size > 1), "nothing was batched: {sizes:?}");
    assert!(sizes.iter().all(|&size| size <= 16), "above max_batch_size: {sizes:?}");
    let sizes = batch_sizes(&all_at_once(&client, "together", &[1, 3, 2, 5, 1, 16, 4]).await);
    assert!(sizes.iter().all(|&size| size <= 16), "above max_batch_size: {sizes:?}");
    for (size, own) in sizes.iter().zip([1, 3, 2, 5, 1, 16, 4]) {
        assert!(*size >= own, "a batch holds at least its request: {sizes:?}");
    }

    assert_eq!(batch_sizes(&all_at_once(&client, "unbatched", &[1; 12]).await), [1; 12]);
    let sizes = batch_sizes(&all_at_once(&client, "alone", &[1, 2, 1, 3, 1, 1]).await);
    assert_eq!(sizes, [1, 2, 1, 3, 1, 1], "`batch_safe = false` shares nothing");

    only_the_guilty_fails(&client).await;
    let failed = worker.stderr().matches("a batch failed; its halves run apart").count();
    assert!(failed > 0, "the culprit had company");

    // Counted once a run, however many requests it answered.
    eventually("the worker reports fewer batches than rows", Duration::from_secs(10), async || {
        let fleet = client.fleet().await;
        let models = fleet.workers().flat_map(|worker| &worker.models);
        models.into_iter().any(|model| model.name == "together" && model.rows == 96 && model.batches < 40)
    })
    .await;
    client.close().await;
}

/// The model fails on any batch with a negative element; its batch mates must not be told so.
async fn only_the_guilty_fails(client: &Client) {
    const GUILTY: usize = 5;
    let requests = (0..12).map(|position| {
        let value = if position == GUILTY { -1.0 } else { 1.0 };
        Request::new("failing").input_array("x", rows(1, value).view()).unwrap()
    });
    let results: Vec<_> = client.stream(stream::iter(requests), 12).collect().await;
    assert_eq!(results.len(), 12);
    let mut in_company = 0;
    for (position, result) in results {
        match result {
            Ok(response) => {
                assert_ne!(position, GUILTY);
                assert_eq!(response.array::<f32>("y").unwrap(), rows(1, 1.0).into_dyn());
                in_company += usize::from(response.timing().batch_size > 1);
            }
            Err(error) => {
                assert_eq!((position, error.code()), (GUILTY, Code::BackendError), "{error}");
            }
        }
    }
    // Of a batch of twelve at most two innocents end alone: where its last halves have one or two members.
    assert!(in_company >= 6, "{in_company} of the innocents were answered in a batch of several");
}

#[tokio::test]
async fn a_reserved_instance_leaves_other_tiers_to_the_others() {
    let groups = "max_batch_size = 1\n[[instance_group]]\n[[instance_group]]\ntiers = [\"premium\"]\n";
    let stack = Stack::new().config("slow", groups).model("slow", &models::slow(300));
    let _worker = stack.worker();
    let client = stack.client().await;
    let request = |tier| Request::new("slow").tier(tier).input_array("x", rows(1, 1.0).view()).unwrap();
    let mut free = Vec::new();
    for _ in 0..6 {
        free.push(client.submit(request("free")).await.unwrap().outcome());
    }
    let premium = client.submit(request("premium")).await.unwrap();
    tokio::select! {
        biased;
        premium = premium.outcome() => drop(premium.unwrap()),
        // Only if some of them ran on the reserved instance, or premium waited for all of them.
        free = join_all(free) => panic!("free went first: {free:?}"),
    }
    client.close().await;
}
