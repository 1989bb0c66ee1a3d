//! How long a switch takes to every worker of a fleet that is at work.

use std::time::{Duration, Instant};

use lapin::Confirmation;
use millrace_common::fleet::Fleet;
use millrace_common::switches::{Record, Setting};
use millrace_harness::models;
use millrace_producer::Client;
use millrace_tests::foreign::Foreign;
use millrace_tests::load::{Plan, Trial, say, setting};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};

const WORKERS: usize = 8;
/// Without being told to go on for longer.
const SHORT: u64 = 5;
/// Eight workers leave two cores something to do.
const PLAN: Plan = Plan { in_flight: 4, pause: Duration::from_millis(20), ..Plan::SINGLE };
/// 99 of 100 times, from before it is published until the worker says that it holds.
const WITHIN: Duration = Duration::from_secs(1);
const NAME: &str = "tier.free.weight";

/// How many workers say that the switch has this value.
fn holds(fleet: &Fleet, value: &str) -> usize {
    fleet.workers().filter(|worker| worker.switches.get(NAME).is_some_and(|held| held == value)).count()
}

/// How long each worker took.
async fn switch(client: &Client, foreign: &Foreign, exchange: &str, weight: u32) -> Vec<Duration> {
    let value = weight.to_string();
    let setting = Setting::parse(NAME, &value).unwrap();
    let record = Record::set(&[setting], Duration::from_secs(600), "propagation").unwrap();
    let body = serde_json::to_vec(&record).unwrap();
    let started = Instant::now();
    let confirmed =
        foreign.publish_to(exchange, "", foreign.properties().with_user_id("guest".into()), &body).await;
    assert_eq!(confirmed, Confirmation::Ack(None));
    let mut took = Vec::new();
    while took.len() < WORKERS {
        let know = holds(&client.fleet().await, &value);
        took.resize(know.max(took.len()), started.elapsed());
        assert!(started.elapsed() < READY, "{know} of {WORKERS} know of {weight}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_reaches_eight_workers_in_time() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let mut workers: Vec<_> = (0..WORKERS).map(|_| stack.starting_worker(&[])).collect();
    for worker in &mut workers {
        worker.wait_for_line("ready worker=", READY).unwrap();
    }
    let client = stack.client().await;
    eventually("all are heard of", READY, async || client.fleet().await.workers().count() == WORKERS).await;
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let exchange = format!("{}.switches", stack.prefix());
    let trial = Trial::begin("switches", &stack, stack.client().await, PLAN).await;
    let told = setting("MILLRACE_SWITCHING_SECONDS");
    let (started, length) = (Instant::now(), Duration::from_secs(told.unwrap_or(SHORT)));
    let (mut took, mut weight) = (Vec::new(), 0);
    while started.elapsed() < length {
        weight = weight % 10_000 + 1;
        took.extend(switch(&client, &foreign, &exchange, weight).await);
    }
    trial.end().await;
    // All of them come again to one that starts now: only the last holds.
    let mut late = stack.starting_worker(&[]);
    late.wait_for_line("ready worker=", READY).unwrap();
    eventually("a late one knows", READY, async || {
        holds(&client.fleet().await, &weight.to_string()) == WORKERS + 1
    })
    .await;
    assert_eq!(late.stderr().matches("a switch holds").count(), 1, "{}", late.stderr());
    took.sort_unstable();
    let part = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    say(format_args!(
        "{weight} switches over {WORKERS} workers: {:.0?} in the middle, {:.0?} for 99 of 100, {:.0?} at most",
        part(50),
        part(99),
        part(100)
    ));
    // Times are for machines that do nothing else: whoever asks for figures.
    assert!(told.is_none() || part(99) < WITHIN, "{:?}", part(99));
    client.close().await;
}
