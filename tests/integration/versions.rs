//! Versions: several in one worker, and different ones in different workers.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Code, Request, Response};
use millrace_tests::stack::{ONE_INSTANCE, Stack};
use ndarray::Array2;

/// Version `n` multiplies by `n`.
fn request(version: Option<u64>) -> Request {
    let row = Array2::from_elem((1, 4), 1.0f32);
    let request = Request::new("m").input_array("x", row.view()).unwrap();
    version.map_or(request.clone(), |version| request.version(version))
}

fn assert_ran(response: &Response, version: u64) {
    assert_eq!(response.meta.model_version, Some(version));
    assert_eq!(response.body.model_version, Some(version.to_string()));
    let expected = Array2::from_elem((1, 4), version as f32).into_dyn();
    assert_eq!(response.array::<f32>("y").unwrap(), expected, "version {version}");
}

/// How often the workers sent a request on to another one.
fn hops(workers: &[&WorkerProcess]) -> usize {
    workers.iter().map(|worker| worker.stderr().matches("passing a request on").count()).sum()
}

/// A version that nobody serves is told so, after as many hops as it takes to be sure.
async fn expect_unknown(client: &Client, version: u64) {
    let error = client.infer(request(Some(version))).await.unwrap_err();
    assert_eq!(error.code(), Code::UnknownVersion, "{error}");
    assert!(error.to_string().contains(&version.to_string()), "{error}");
}

#[tokio::test]
async fn one_worker_serves_several_versions_and_models() {
    let stack = Stack::new()
        .config("m", &format!("version_policy = {{ all = {{}} }}\n{ONE_INSTANCE}"))
        .version("m", 1, &models::scale(1.0))
        .version("m", 2, &models::scale(2.0))
        .version("m", 10, &models::scale(10.0))
        .config("latest", ONE_INSTANCE)
        .version("latest", 1, &models::scale(1.0))
        .version("latest", 3, &models::scale(3.0));
    let worker = stack.talkative_worker("all");
    let client = stack.client().await;
    for version in [1, 2, 10] {
        assert_ran(&client.infer(request(Some(version))).await.unwrap(), version);
    }
    assert_ran(&client.infer(request(None)).await.unwrap(), 10);

    let latest = Request::new("latest").input_array("x", Array2::from_elem((1, 4), 1.0f32).view()).unwrap();
    assert_ran(&client.infer(latest.clone()).await.unwrap(), 3);
    // The default policy serves the newest only.
    let error = client.infer(latest.version(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::UnknownVersion, "{error}");
    assert_eq!(hops(&[&worker]), 3);

    let fleet = client.fleet().await;
    let models: Vec<_> = fleet.workers().flat_map(|worker| &worker.models).collect();
    let served: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.version)).collect();
    assert_eq!(served, [("latest", 3), ("m", 1), ("m", 2), ("m", 10)]);
    let defaults: Vec<_> =
        models.iter().filter(|model| model.is_default).map(|model| model.version).collect();
    assert_eq!(defaults, [3, 10]);
    client.close().await;
}

#[tokio::test]
async fn pinned_requests_find_their_worker_without_a_hot_loop() {
    let one = Stack::new().config("m", ONE_INSTANCE).version("m", 1, &models::scale(1.0));
    let two = one.beside().config("m", ONE_INSTANCE).version("m", 2, &models::scale(2.0));
    let workers = [one.talkative_worker("one"), two.talkative_worker("two")];
    let [first, second] = &workers;
    let client = one.client().await;
    // Until the workers have heard of each other, a version could still be unknown to them.
    let fleet = client.fleet().await;
    assert!(fleet.serves("m", 1) && fleet.serves("m", 2));

    // In pairs that may wait for each other's worker: the broker deals in turn, to the wrong ones again and again where both
    // come back at the same time.
    let crossed: Vec<u64> = (0..24).map(|number| 1 + number % 2).collect();
    // And many of one version, few of the other.
    let lopsided: Vec<u64> = (0..24).map(|number| 1 + u64::from(number % 3 == 0)).collect();
    for (pins, in_flight) in [(&crossed, 2), (&lopsided, 4)] {
        let before = hops(&[first, second]);
        let requests = pins.iter().map(|&version| request(Some(version)).tier("premium"));
        let results: Vec<_> = client.stream(stream::iter(requests), in_flight).collect().await;
        assert_eq!(results.len(), pins.len());
        for (position, result) in results {
            let response = result.unwrap();
            assert_ran(&response, pins[position]);
            assert_eq!(response.worker(), if pins[position] == 1 { "one" } else { "two" });
        }
        // One hop each is to be expected; a hot loop would hop thousands of times a second.
        let hopped = hops(&[first, second]) - before;
        assert!(hopped <= 5 * pins.len(), "{hopped} hops for {pins:?}");
    }
    assert!(hops(&[first, second]) > 0, "luck alone brings no 48 requests to the right one of two workers");

    // Without a pin each worker answers with its own newest.
    for _ in 0..4 {
        let response = client.infer(request(None)).await.unwrap();
        assert_ran(&response, if response.worker() == "one" { 1 } else { 2 });
    }

    let before = hops(&[first, second]);
    let started = Instant::now();
    expect_unknown(&client, 7).await;
    let pauses = Duration::from_millis(50 + 250 + 1_000);
    assert!((pauses..Duration::from_secs(10)).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!(hops(&[first, second]) - before, 3, "as often as configured, then it is unknown");
    client.close().await;
}
