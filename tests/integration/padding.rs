//! Requests of unlike inner sizes: together where the model is padded, and never beyond its budget of elements.

use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_producer::{Client, Code, Request};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};
use ndarray::Array2;

/// Long enough for a client on a busy machine to have published everything.
const DELAY: &str = "max_queue_delay_microseconds = 300000\n";
/// What fills `x` up is not zero: only the mask makes the sums right.
const PADDING: &str = "padding = { values = { x = 7.0, mask = 0 }, buckets = [4, 16] }\n";

/// The request number `position`: so long, of rows whose every element tells them apart.
fn request(model: &str, position: usize, rows: usize, length: usize) -> (Request, Array2<f32>) {
    let x = Array2::from_shape_fn((rows, length), |(row, at)| (position * 1000 + row * 100 + at) as f32);
    let mask = Array2::<f32>::ones(x.dim());
    let request = Request::new(model).input_array("x", x.view()).unwrap();
    (request.input_array("mask", mask.view()).unwrap(), x)
}

/// Sends requests of these rows and lengths at once, and checks that each gets its own answer. Returns the rows of each one's batch.
async fn all_at_once(client: &Client, model: &str, shapes: &[(usize, usize)]) -> Vec<u64> {
    let shapes = shapes.iter().enumerate();
    let (requests, own): (Vec<_>, Vec<_>) =
        shapes.map(|(position, &(rows, length))| request(model, position, rows, length)).unzip();
    let in_flight = requests.len();
    let mut batch_sizes = vec![0; in_flight];
    let mut responses = client.stream(stream::iter(requests), in_flight);
    while let Some((position, response)) = responses.next().await {
        let response = response.unwrap();
        let x = &own[position];
        assert_eq!(response.array::<f32>("y").unwrap(), x.clone().into_dyn(), "{model}, request {position}");
        let sums = x.sum_axis(ndarray::Axis(1)).insert_axis(ndarray::Axis(1)).into_dyn();
        assert_eq!(response.array::<f32>("sum").unwrap(), sums, "{model}, request {position}");
        batch_sizes[position] = response.timing().batch_size;
    }
    batch_sizes
}

#[tokio::test]
async fn unlike_sizes_share_batches_within_the_budget() {
    let with = |more: &str| format!("{ONE_INSTANCE}[dynamic_batching]\n{DELAY}{more}");
    let stack = Stack::new()
        .config("padded", &with(PADDING))
        .model("padded", &models::masked())
        .config("bounded", &with(&format!("{PADDING}max_padded_elements = 64\n")))
        .model("bounded", &models::masked())
        .config("plain", &with("max_padded_elements = 20\n"))
        .model("plain", &models::masked());
    let worker = stack.worker();
    let client = stack.client().await;

    // All in one bucket, all different: without padding each would run alone.
    let unlike: Vec<(usize, usize)> = (5..=16).map(|length| (1 + length % 2, length)).collect();
    let sizes = all_at_once(&client, "padded", &unlike).await;
    assert!(sizes.iter().any(|&size| size > 2), "nothing was batched: {sizes:?}");
    // Longer than every bucket: alone, unless of one size.
    assert_eq!(all_at_once(&client, "padded", &[(1, 20), (2, 21), (1, 22)]).await, [1, 2, 1]);

    // 64 elements are 4 rows of the bucket of 16.
    let sizes = all_at_once(&client, "bounded", &unlike).await;
    assert!(sizes.iter().all(|&size| size <= 4), "{sizes:?}");
    assert!(sizes.iter().any(|&size| size > 2), "nothing was batched: {sizes:?}");
    assert_eq!(all_at_once(&client, "bounded", &[(6, 9)]).await, [6], "one alone may exceed it");

    let sizes = all_at_once(&client, "plain", &[(1, 5); 12]).await;
    assert!(sizes.iter().all(|&size| size <= 4) && sizes.iter().any(|&size| size > 1), "{sizes:?}");

    let unlike = Request::new("padded")
        .input_array("x", Array2::<f32>::ones((1, 6)).view())
        .unwrap()
        .input_array("mask", Array2::<f32>::ones((1, 5)).view())
        .unwrap();
    let error = client.infer(unlike).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput, "{error}");
    assert!(error.to_string().contains("dimension `sequence` has size 5 in input `mask`"), "{error}");
    assert!(!worker.stderr().contains("a batch failed"), "{}", worker.stderr());
    client.close().await;
}

#[test]
fn what_cannot_be_cut_back_keeps_a_worker_from_starting() {
    let padding = "[dynamic_batching.padding]\nvalues = { x = 0 }\n";
    for (model, config, part) in [
        (
            models::doubled(),
            padding.to_owned(),
            "output `y` cannot be cut back to a request's own size along axis 1",
        ),
        (models::masked(), padding.to_owned(), "input `mask` has dynamic inner dimensions"),
        (models::masked(), format!("batch_safe = false\n{padding}"), "its requests share no batch anyway"),
    ] {
        let stack = Stack::new().config("m", &config).model("m", &model);
        let mut worker = stack.spawn_worker(&[], &[]);
        assert_eq!(worker.wait(READY).unwrap().code(), Some(2));
        let text = worker.stderr();
        assert!(
            text.contains("model `m` version 1") && text.contains(part),
            "`{part}` is missing from:\n{text}"
        );
    }
}
