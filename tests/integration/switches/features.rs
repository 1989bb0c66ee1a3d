//! Features that are switched off and on.

use futures_util::future::join_all;
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{CacheStats, Client, Response};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};

use super::{SOON, ask, switch};
use crate::bundles::{allowing, replies};

/// Requests that travelled in so many messages, of twelve that were sent together.
async fn messages(client: &Client) -> usize {
    let together = (0..12).map(|_| ask(client, "m", "free"));
    let answers: Vec<Response> = join_all(together).await.into_iter().map(Result::unwrap).collect();
    let mut ids: Vec<&str> = answers.iter().map(|answer| answer.meta.request_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

pub(super) fn requests_logged(worker: &WorkerProcess) -> usize {
    worker.stderr().lines().filter(|line| line.contains("outcome=\"ok\"")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_feature_that_is_switched_off_does_its_work_no_more() {
    const DELAY: &str = "max_batch_size = 16\ndynamic_batching = { max_queue_delay_microseconds = 300000 }\n";
    let stack = Stack::new()
        .config("m", &format!("max_batch_size = 16\n{ONE_INSTANCE}"))
        .model("m", &models::scale(1.0))
        .config("late", &format!("{DELAY}{ONE_INSTANCE}"))
        .model("late", &models::scale(1.0));
    let worker = stack.worker();
    let mut config = stack.client_config();
    config.requests.pack_linger_us = 20_000;
    let client = Client::connect(config.clone()).await.unwrap();
    config.requests.cache.models.insert("m".to_owned(), 600);
    let caching = Client::connect(config).await.unwrap();
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let most_in_a_message = async || {
        let body = rows(&[[1.0; 4]]);
        for _ in 0..16 {
            foreign.request_with("late.free", allowing(foreign.properties(), 16), &body).await;
        }
        let (mut all, mut most) = (0, 0);
        eventually("all are answered", READY, async || {
            while let Some(message) = foreign.get(&foreign.reply_queue()).await {
                all += replies(&message).len();
                most = most.max(replies(&message).len());
            }
            all == 16
        })
        .await;
        most
    };

    for client in [&client, &caching] {
        client.fleet().await;
    }
    assert!(messages(&client).await < 12);
    ask(&caching, "m", "free").await.unwrap();
    ask(&caching, "m", "free").await.unwrap();
    assert_eq!(caching.cache_stats(), CacheStats { hits: 1, misses: 1, ..CacheStats::default() });
    assert!(most_in_a_message().await > 1);
    assert_eq!(requests_logged(&worker), 0);

    let off = ["feature.packing=off", "feature.cache=off", "feature.bundles=off", "feature.access_log=on"];
    switch(&stack, &[&["set"], &off[..], &["--reason", "incident"]].concat());
    assert_eq!(messages(&client).await, 12);
    ask(&caching, "m", "free").await.unwrap();
    assert_eq!(caching.cache_stats(), CacheStats { hits: 1, misses: 1, ..CacheStats::default() });
    assert_eq!(most_in_a_message().await, 1);
    eventually("every request is logged", SOON, async || requests_logged(&worker) == 12 + 1 + 16).await;
    let line = worker.stderr().lines().rfind(|line| line.contains("outcome=\"ok\"")).unwrap().to_owned();
    assert!(
        ["key=\"late.free\"", "tenant=", "infer_us=", "request_bytes="]
            .iter()
            .all(|part| line.contains(part)),
        "{line}"
    );

    switch(&stack, &["clear", "--all"]);
    let logged = requests_logged(&worker);
    assert!(messages(&client).await < 12);
    ask(&caching, "m", "free").await.unwrap();
    assert_eq!(caching.cache_stats().hits, 2);
    assert!(most_in_a_message().await > 1);
    assert_eq!(requests_logged(&worker), logged);
    // Logs themselves.
    assert!(!worker.stderr().contains("running a batch"));
    switch(&stack, &["set", "logs.filter=info,millrace_worker=debug", "--reason", "a look"]);
    messages(&client).await;
    assert!(worker.stderr().contains("running a batch"));
    client.close().await;
    caching.close().await;
}
