//! Live switches: what an operator changes for the whole fleet at once, by command or by editing a configuration file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Confirmation;
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{CacheStats, Client, Code, Error, Request, Response};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually, milestone};
use ndarray::Array2;
use serde_json::{Value, json};

use crate::bundles::{allowing, replies};

const BIG: f32 = 2.0;
const SMALL: f32 = 3.0;
/// In which a switch reaches workers and callers, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

async fn ask(client: &Client, model: &str, tier: &str) -> Result<Response, Error> {
    client
        .infer(
            Request::new(model)
                .tier(tier)
                .input_array("x", Array2::from_elem((1, 4), 1.0f32).view())
                .unwrap(),
        )
        .await
}

fn factor(response: &Response) -> f32 {
    response.array::<f32>("y").unwrap()[[0, 0]]
}

/// A big model whose premium requests a small one stands in for.
fn stack() -> Stack {
    let ladder = "[[degradation]]\ntiers = [\"premium\"]\nmodel = \"small\"\n";
    Stack::new()
        .config("small", ONE_INSTANCE)
        .model("small", &models::scale(SMALL))
        .config("big", &format!("{ONE_INSTANCE}{ladder}"))
        .model("big", &models::scale(BIG))
}

/// Runs `millrace switch` and returns what it says.
fn switch(stack: &Stack, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["switch"].iter().chain(arguments).copied().collect();
    let (code, out, err) = stack.millrace(&all, &[]);
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    format!("{out}{err}")
}

fn log(stack: &Stack) -> Vec<Value> {
    serde_json::from_str(&switch(stack, &["log", "--json"])).unwrap()
}

async fn expect_big(client: &Client, tier: &str) {
    eventually("the big model answers itself", SOON, async || {
        let response = ask(client, "big", tier).await;
        response.is_ok_and(|response| factor(&response) == BIG && response.degraded().is_none())
    })
    .await;
}

async fn expect_small(client: &Client, label: &str) {
    let response = ask(client, "big", "premium").await.unwrap();
    assert_eq!((factor(&response), response.degraded()), (SMALL, Some(label)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakers_and_ladders_are_switched_for_all_workers_and_by_themselves_back() {
    let stack = stack();
    let mut first = stack.worker();
    let client = stack.client().await;
    expect_big(&client, "premium").await;

    let said = switch(&stack, &["set", "model.big.circuit_breaker=forced_open", "--reason", "wrong answers"]);
    assert!(said.contains("on 1 of 1 workers"), "{said}");
    expect_small(&client, "model:small:1;circuit_open").await;
    let error = ask(&client, "big", "free").await.unwrap_err();
    assert!(matches!(error, Error::Failed { code: Code::Unavailable, retry_after: Some(_), .. }), "{error}");
    let (_, models, _) = stack.millrace(&["models"], &[]);
    assert!(models.contains("circuit breaker forced_open"), "{models}");
    // Known to one that starts later, from its first request on.
    let second = stack.worker();
    first.terminate();
    assert_eq!(first.wait(READY).unwrap().code(), Some(0));
    expect_small(&client, "model:small:1;circuit_open").await;
    let list = switch(&stack, &["list"]);
    let parts = ["model.big.circuit_breaker", "forced_open", "1 of 1", "guest", "wrong answers"];
    assert!(parts.iter().all(|part| list.contains(part)), "{list}");

    let said = switch(&stack, &["clear", "model.big.circuit_breaker"]);
    assert!(said.contains("ended, on 1 of 1 workers"), "{said}");
    expect_big(&client, "free").await;
    // For one tier only, and only for a while.
    switch(&stack, &["set", "model.big.premium.degraded=on", "--for", "3s", "--reason", "load"]);
    expect_small(&client, "model:small:1;switched").await;
    expect_big(&client, "free").await;
    expect_big(&client, "premium").await;
    assert!(second.stderr().contains("a switch holds no more"), "{}", second.stderr());
    assert!(switch(&stack, &["list"]).contains("no switch holds"));

    let log = log(&stack);
    let reasons: Vec<&str> = log.iter().map(|change| change["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["wrong answers", "not needed any more", "load"]);
    assert!(log.iter().all(|change| change["by"] == "guest"), "{log:?}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_wrong_anywhere_changes_nothing() {
    let stack = stack();
    let worker = stack.worker();
    let good = "tier.free.weight=3";
    for (bad, remedy) in [
        ("tier.gold.weight=2", "premium, enterprise, free"),
        ("tier.free.weight=0", "from 1 to 10000"),
        ("tier.free.wieght=2", "the switches are"),
        ("tier.free.weight=2", "given twice"),
        ("model.big.circuit_breaker=open", "forced_open or disabled"),
        ("feature.cache", "NAME=VALUE"),
    ] {
        let (code, _, err) = stack.millrace(&["switch", "set", good, bad, "--reason", "r"], &[]);
        assert!(code == 2 && err.contains(remedy), "{bad} ({code}): {err}");
    }
    for more in [["--for", "8d"], ["--for", "0s"], ["--reason", " "]] {
        let (code, _, err) =
            stack.millrace(&[&["switch", "set", good, "--reason", "r"], &more[..]].concat(), &[]);
        assert!(code == 2, "{more:?} ({code}): {err}");
    }
    let (code, _, err) = stack.millrace(&["switch", "clear", "tier.free.weight"], &[]);
    assert!(code == 2 && err.contains("does not hold"), "{err}");
    assert!(log(&stack).is_empty(), "none of it was published");

    // What does not come from the command is as hostile as anything.
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let publish = async |body: Value| {
        let exchange = format!("{}.switches", stack.prefix());
        let properties = foreign.properties().with_reply_to("".into());
        let body = serde_json::to_vec(&body).unwrap();
        assert_eq!(foreign.publish_to(&exchange, "", properties, &body).await, Confirmation::Ack(None));
    };
    let at_ms = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let set = |set: Value, at_ms: u64, seconds: u64| json!({"format": 1, "at_ms": at_ms, "seconds": seconds, "set": set, "reason": "r"});
    publish(json!("a switch")).await;
    publish(set(json!({"tier.free.weight": "3", "tier.free.max_share": "7"}), at_ms, 60)).await;
    publish(set(json!({"tier.free.weight": "3"}), at_ms + 3_600_000, 60)).await;
    publish(set(json!({"tier.free.weight": "3"}), at_ms, 1 << 40)).await;
    publish(set(json!({"tier.premium.weight": "5"}), at_ms, 60)).await;
    let client = stack.client().await;
    eventually("the good one holds", SOON, async || {
        let fleet = client.fleet().await;
        let switches: Vec<_> = fleet.workers().map(|worker| worker.switches.clone()).collect();
        assert!(switches.iter().all(|switches| !switches.contains_key("tier.free.weight")), "{switches:?}");
        switches == [BTreeMap::from([("tier.premium.weight".to_owned(), "5".to_owned())])]
    })
    .await;
    assert_eq!(worker.stderr().matches("is no record").count(), 3, "{}", worker.stderr());
    assert!(worker.stderr().contains("compare the clocks"), "{}", worker.stderr());
    client.close().await;
}

/// Requests that travelled in so many messages, of twelve that were sent together.
async fn messages(client: &Client) -> usize {
    let together = (0..12).map(|_| ask(client, "m", "free"));
    let answers: Vec<Response> = join_all(together).await.into_iter().map(Result::unwrap).collect();
    let mut ids: Vec<&str> = answers.iter().map(|answer| answer.meta.request_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

fn requests_logged(worker: &WorkerProcess) -> usize {
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

/// Puts a file in the place that Kubernetes gives a ConfigMap: a link to a link to a folder that is new each time.
fn mount(folder: &Path, generation: &str, toml: &str) {
    let (data, fresh) = (folder.join(generation), folder.join("..new"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("worker.toml"), toml).unwrap();
    symlink(generation, &fresh).unwrap();
    fs::rename(&fresh, folder.join("..data")).unwrap();
    if !folder.join("worker.toml").exists() {
        symlink("..data/worker.toml", folder.join("worker.toml")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_file_is_followed_as_far_as_it_may_change() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.toml").display().to_string();
    mount(folder.path(), "..1", "worker.grace_seconds = 20\n");
    let mut worker = stack.worker_with(&[("MILLRACE_CONFIG", &file)]);
    let client = stack.client().await;
    ask(&client, "m", "free").await.unwrap();
    assert_eq!(requests_logged(&worker), 0);

    mount(folder.path(), "..2", "worker.grace_seconds = 20\n[features]\naccess_log = true\n");
    milestone(&mut worker, "the changed configuration holds").await;
    ask(&client, "m", "free").await.unwrap();
    eventually("the request is logged", SOON, async || requests_logged(&worker) == 1).await;
    // A switch goes before it.
    switch(&stack, &["set", "feature.access_log=off", "--reason", "quiet"]);
    ask(&client, "m", "free").await.unwrap();
    assert_eq!(requests_logged(&worker), 1);
    switch(&stack, &["clear", "feature.access_log"]);

    // Refused whole, whatever else is in it.
    mount(folder.path(), "..3", "worker.grace_seconds = 3\n[features]\naccess_log = false\n");
    milestone(&mut worker, "restart the worker to change worker.grace_seconds").await;
    mount(
        folder.path(),
        "..4",
        "worker.grace_seconds = 20\n[features]\naccess_log = false\nacces_log = true\n",
    );
    milestone(&mut worker, "unknown field `acces_log`").await;
    ask(&client, "m", "free").await.unwrap();
    eventually("what was goes on", SOON, async || requests_logged(&worker) == 2).await;
    mount(folder.path(), "..5", "worker.grace_seconds = 20\n");
    eventually("it holds", READY, async || worker.stderr().matches("configuration holds").count() == 2).await;
    ask(&client, "m", "free").await.unwrap();
    assert_eq!(requests_logged(&worker), 2);
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    client.close().await;
}
