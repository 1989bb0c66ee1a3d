//! What a caller of the library does: tiers, arrays, streams, and names that nobody serves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_producer::{Code, Error, Request};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};
use ndarray::{Array2, arr2};

const TIERS: [&str; 3] = ["premium", "enterprise", "free"];

fn doubler() -> Stack {
    Stack::new().config("double", ONE_INSTANCE).model("double", &models::scale(2.0))
}

fn request(rows: &Array2<f32>) -> Request {
    Request::new("double").input_array("x", rows.view()).unwrap()
}

#[tokio::test]
async fn tiers_arrays_and_streams_are_served() {
    let stack = doubler();
    let _worker = stack.worker();
    let client = stack.client().await;

    // Transposed, so that its elements do not lie in row-major order.
    let tall = arr2(&[[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]);
    let wide = tall.t().to_owned();
    assert_ne!(tall.as_slice(), wide.as_slice());
    for tier in TIERS {
        let transposed = Request::new("double").input_array("x", tall.t()).unwrap();
        let response = client.infer(transposed.tier(tier).correlation_id(tier)).await.unwrap();
        assert_eq!(response.array::<f32>("y").unwrap(), (&wide * 2.0).into_dyn(), "{tier}");
        assert_eq!(response.meta.correlation_id.as_deref(), Some(tier));
        assert!(response.array::<i64>("y").is_err() && response.array::<f32>("z").is_err());
    }
    let unknown = client.infer(request(&wide).tier("gold")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidInput, "{unknown}");

    let numbers = 0..200u16;
    let requests = numbers.clone().map(|number| {
        request(&Array2::from_elem((1, 4), f32::from(number))).tier(TIERS[usize::from(number % 3)])
    });
    let results: Vec<_> = client.stream(stream::iter(requests), 50).collect().await;
    for (position, result) in &results {
        let doubled = result.as_ref().unwrap().array::<f32>("y").unwrap();
        assert_eq!(doubled, Array2::from_elem((1, 4), *position as f32 * 2.0).into_dyn());
    }
    let positions: BTreeSet<usize> = results.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions.len(), numbers.len(), "each request has one result");
    assert_eq!(client.pending(), 0);

    eventually("the worker reports rows of every tier", Duration::from_secs(10), async || {
        let fleet = client.fleet().await;
        let lanes: Vec<_> = fleet.workers().flat_map(|worker| &worker.lanes).collect();
        lanes.len() == 3
            && lanes.iter().all(|lane| lane.served_rows >= 68 && lane.requests == 0 && lane.bytes == 0)
    })
    .await;
    client.close().await;
}

#[tokio::test]
async fn an_unknown_model_comes_back_at_once_and_its_neighbours_do_not() {
    let stack = doubler();
    let _worker = stack.worker();
    let client = stack.client().await;
    let row = Array2::from_elem((1, 4), 1.0f32);

    // On one connection, so many at once that the broker gathers its confirms: its returns must find the right requests.
    let started = Instant::now();
    let requests = (0..2000).map(|number| {
        let model = if number % 2 == 0 { "double" } else { "nobody" };
        Request::new(model).input_array("x", row.view()).unwrap()
    });
    let results: Vec<_> = client.stream(stream::iter(requests), 500).collect().await;
    assert_eq!(results.len(), 2000);
    for (position, result) in results {
        match result {
            Ok(_) => assert_eq!(position % 2, 0),
            Err(error) => {
                assert_eq!(position % 2, 1, "{error}");
                assert!(matches!(&error, Error::Refused { code: Code::UnknownModel, .. }), "{error}");
                assert!(error.to_string().contains("nobody"), "{error}");
            }
        }
    }
    // The deadline is a minute.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());

    // Such a name cannot even be a routing key.
    let invalid = client.infer(Request::new("no/model")).await.unwrap_err();
    assert!(matches!(invalid, Error::Invalid(_)), "{invalid}");
    client.infer(request(&row)).await.unwrap();
    client.close().await;
}
