//! Equal work is done once, and answers are kept where the configuration says so.

use std::time::Duration;

use futures_util::future::join_all;
use millrace_harness::models;
use millrace_producer::{CacheStats, Client, Request};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

async fn client(stack: &Stack, seconds: u64, stale_seconds: u64) -> Client {
    let mut config = stack.client_config();
    config.requests.cache.models.insert("m".to_owned(), seconds);
    config.requests.cache.stale_seconds = stale_seconds;
    Client::connect(config).await.unwrap()
}

fn request(value: f32) -> Request {
    Request::new("m").input_array("x", Array2::from_elem((1, 4), value).view()).unwrap()
}

async fn ask(client: &Client, request: Request, value: f32) {
    let response = client.infer(request).await.unwrap();
    assert_eq!(response.array::<f32>("y").unwrap(), Array2::from_elem((1, 4), value).into_dyn());
}

/// Rows that the only worker has run.
async fn ran(client: &Client) -> u64 {
    client.fleet().await.workers().flat_map(|worker| &worker.models).map(|model| model.rows).sum()
}

#[tokio::test]
async fn equal_requests_are_run_once() {
    let stack = Stack::new()
        .config("m", &format!("model_warmup = false\n{ONE_INSTANCE}"))
        .model("m", &models::slow(300));
    let _worker = stack.worker();
    let client = client(&stack, 2, 0).await;
    // Away together: one is sent, the others wait for it. Each keeps its own ids.
    let together = (0..10).map(|number| {
        let client = &client;
        async move {
            let id = format!("c{number}");
            let response = client.infer(request(1.0).correlation_id(&id)).await.unwrap();
            assert_eq!(response.meta.correlation_id, Some(id));
        }
    });
    join_all(together).await;
    assert_eq!(client.cache_stats(), CacheStats { hits: 0, joined: 9, misses: 1, stale: 0 });
    ask(&client, request(1.0), 1.0).await;
    ask(&client, request(1.0).tier("premium"), 1.0).await;
    assert_eq!(client.cache_stats(), CacheStats { hits: 2, joined: 9, misses: 1, stale: 0 });
    // Another input, another version, and one of another tier that must not wait for the free one that is away.
    let premium = request(2.0).tier("premium");
    tokio::join!(
        ask(&client, request(2.0), 2.0),
        ask(&client, premium, 2.0),
        ask(&client, request(1.0).version(1), 1.0)
    );
    assert_eq!(client.cache_stats(), CacheStats { hits: 2, joined: 9, misses: 4, stale: 0 });
    // No longer fresh.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    ask(&client, request(1.0), 1.0).await;
    assert_eq!(client.cache_stats().misses, 5);
    eventually("each was run once", READY, async || ran(&client).await == 5).await;
    // Whoever gives up leaves the others their answer.
    let mut first = Box::pin(client.infer(request(3.0)));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut first).await.is_err());
    let second = ask(&client, request(3.0), 3.0);
    tokio::join!(second, async { drop(first) });
    client.close().await;
}

#[tokio::test]
async fn what_is_no_longer_fresh_stands_in_for_a_fleet_without_an_answer() {
    let broken = tempfile::tempdir().unwrap();
    let breaker = "[circuit_breaker]\nsliding_window_size = 4\nminimum_number_of_calls = 4\n";
    let stack = Stack::new().config("m", &format!("{ONE_INSTANCE}{breaker}")).model("m", &models::scale(1.0));
    let folder = broken.path().to_str().unwrap();
    let mut worker = stack.faulty_worker_with(&[(millrace_tests::faulty::BROKEN_VARIABLE, folder)]);
    worker.wait_for_line("ready worker=", READY).unwrap();
    let client = client(&stack, 1, 600).await;
    ask(&client, request(1.0), 1.0).await;
    std::fs::write(broken.path().join("m"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    eventually("the breaker opens, and an old answer stands in", READY, async || {
        client
            .infer(request(1.0))
            .await
            .is_ok_and(|response| response.degraded() == Some("cached;unavailable"))
    })
    .await;
    assert!(client.infer(request(1.0).refuse_degraded()).await.is_err());
    assert!(client.infer(request(5.0)).await.is_err(), "never answered before");
    client.close().await;
}

/// Prints how much of a skewed load 1, 2 and 4 clients answer by themselves: each knows its own answers only.
#[tokio::test]
async fn the_hit_ratio_falls_with_the_number_of_clients() {
    const REQUESTS: usize = 1_200;
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let _worker = stack.worker();
    let mut ratios = Vec::new();
    for clients in [1, 2, 4] {
        let all = join_all((0..clients).map(|_| client(&stack, 600, 0))).await;
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for number in 0..REQUESTS {
            // Of 300 inputs, the first the most wanted by far.
            let value = (300.0 * random.random::<f32>().powi(3)).floor();
            ask(&all[number % clients], request(value), value).await;
        }
        let hits: u64 = all.iter().map(|client| client.cache_stats().hits).sum();
        ratios.push(hits as f64 / REQUESTS as f64);
        println!("{clients} clients: {hits} of {REQUESTS} requests answered from the cache");
        join_all(all.iter().map(Client::close)).await;
    }
    assert!(ratios[0] > ratios[1] && ratios[1] > ratios[2], "{ratios:?}");
}
