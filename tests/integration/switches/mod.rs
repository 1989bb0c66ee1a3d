//! Live switches: what an operator changes for the whole fleet at once, by command or by editing a configuration file.

mod features;
mod file;
mod wrong;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use millrace_common::switches::Record;
use millrace_harness::broker;
use millrace_harness::models;
use millrace_producer::{Client, Code, Error, Request, Response};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::proxy::{Proxy, Way, Weather};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually, milestone};
use ndarray::Array2;
use serde_json::Value;

const BIG: f32 = 2.0;
const SMALL: f32 = 3.0;
/// In which a switch reaches workers and callers, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

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
    on(&broker::shared().amqp_url)
}

fn on(amqp_url: &str) -> Stack {
    let ladder = "[[degradation]]\ntiers = [\"premium\"]\nmodel = \"small\"\n";
    Stack::on(amqp_url)
        .set("MODELS__POLL_SECONDS", "1")
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
    // A suspect is not run either, by nobody.
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let solo = format!("{}.solo", stack.prefix());
    foreign.publish_to(&solo, "big.premium", foreign.properties(), &rows(&[[1.0; 4]])).await;
    assert_eq!(foreign.reply(SOON).await.unwrap().status, "unavailable");
    // A version that is loaded meanwhile is left alone, too.
    models::write(stack.repository(), "big", 2, &models::scale(BIG)).unwrap();
    milestone(&mut first, "versions changed").await;
    expect_small(&client, "model:small:1;circuit_open").await;
    // Known to a worker that starts later before it takes what waits.
    first.terminate();
    assert_eq!(first.wait(READY).unwrap().code(), Some(0));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { expect_small(&client, "model:small:1;circuit_open").await }
    });
    eventually("it waits", SOON, async || foreign.depth("request.big.premium").await == 1).await;
    let second = stack.worker();
    waiting.await.unwrap();
    let list = switch(&stack, &["list"]);
    let parts = ["model.big.circuit_breaker", "forced_open", "1 of 1", "guest", "wrong answers"];
    assert!(parts.iter().all(|part| list.contains(part)), "{list}");

    let said = switch(&stack, &["clear", "model.big.circuit_breaker"]);
    assert!(said.contains("ended, on 1 of 1 workers"), "{said}");
    expect_big(&client, "free").await;
    // For one tier only, and only for a while.
    switch(&stack, &["set", "model.big.premium.degraded=on", "--for", "8s", "--reason", "load", "--no-wait"]);
    eventually("it is degraded", SOON, async || {
        let response = ask(&client, "big", "premium").await.unwrap();
        response.degraded() == Some("model:small:1;switched") && factor(&response) == SMALL
    })
    .await;
    expect_big(&client, "free").await;
    expect_big(&client, "premium").await;
    let ended = second.stderr().matches("a switch holds no more").count();
    assert_eq!(ended, 2, "one was cleared, one ended by itself: {}", second.stderr());
    assert!(switch(&stack, &["list"]).contains("no switch holds"));

    let log = log(&stack);
    let reasons: Vec<&str> = log.iter().map(|change| change["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["wrong answers", "not needed any more", "load"]);
    assert!(log.iter().all(|change| change["by"] == "guest"), "{log:?}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_switched_while_the_broker_is_away_is_known_once_it_is_back() {
    let direct = &broker::shared().amqp_url;
    let proxy = Proxy::before(direct).await;
    let stack = on(proxy.amqp_url());
    let worker = stack.worker();
    switch(&stack, &["set", "model.big.circuit_breaker=forced_open", "--reason", "r"]);
    switch(&stack, &["set", "tier.free.weight=2", "--reason", "r"]);
    let client = stack.client().await;
    expect_small(&client, "model:small:1;circuit_open").await;
    let foreign = Foreign::idle(direct, stack.prefix()).await;
    proxy.set(Weather { there: Way::CutAfter(0), back: Way::CutAfter(0) });
    eventually("it is cut off", READY, async || worker.stderr().contains("lost, reconnecting")).await;
    let record = Record::clear(vec!["model.big.circuit_breaker".to_owned()], "over").unwrap();
    let exchange = format!("{}.switches", stack.prefix());
    let properties = foreign.properties().with_user_id("guest".into());
    foreign.publish_to(&exchange, "", properties, &serde_json::to_vec(&record).unwrap()).await;
    proxy.set(Weather::FAIR);
    eventually("it is heard of", READY, async || worker.stderr().contains("a switch holds no more")).await;
    expect_big(&client, "premium").await;
    // What was read again from the beginning was nothing new.
    let told = |text: &str| worker.stderr().lines().filter(|line| line.contains(text)).count();
    assert_eq!(
        (told("a switch holds switch"), told("a switch holds no more")),
        (2, 1),
        "{}",
        worker.stderr()
    );
    client.close().await;
}

/// Which of 40 requests of each tier are among the first 40 answered, sent while one runs.
async fn first_answered(client: &Client) -> usize {
    let running = ask(client, "slow", "enterprise");
    let mut all: FuturesUnordered<_> = ["premium", "free"]
        .into_iter()
        .flat_map(|tier| (0..40).map(move |_| tier))
        .map(|tier| async move {
            ask(client, "slow", tier).await.unwrap();
            tier
        })
        .collect();
    let waiting = async {
        let mut free = 0;
        for _ in 0..40 {
            free += usize::from(all.next().await == Some("free"));
        }
        while all.next().await.is_some() {}
        free
    };
    let (running, free) = tokio::join!(running, waiting);
    running.unwrap();
    free
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_and_caps_are_what_is_switched() {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(20));
    let _worker = stack.worker();
    let client = stack.client().await;
    // 8 : 1, once all have come.
    let free = first_answered(&client).await;
    assert!(free < 15, "{free}");
    switch(
        &stack,
        &["set", "tier.premium.weight=1", "tier.free.weight=8", "--reason", "the other way round"],
    );
    let free = first_answered(&client).await;
    assert!(free > 25, "{free}");
    switch(&stack, &["clear", "--all"]);

    // One request takes what the tier has for seconds.
    switch(&stack, &["set", "tier.free.max_share=0.01", "--reason", "hardly any"]);
    let (asking, answered) = (client.clone(), Arc::new(AtomicUsize::new(0)));
    let counting = Arc::clone(&answered);
    let capped = tokio::spawn(async move {
        let all = (0..20).map(|_| async {
            ask(&asking, "slow", "free").await.unwrap();
            counting.fetch_add(1, Ordering::Relaxed);
        });
        join_all(all).await;
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let slowly = answered.load(Ordering::Relaxed);
    assert!(slowly < 10, "{slowly} of a hundredth of the time");
    switch(&stack, &["clear", "--all"]);
    tokio::time::timeout(SOON, capped).await.expect("the cap is none any more").unwrap();
    client.close().await;
}
