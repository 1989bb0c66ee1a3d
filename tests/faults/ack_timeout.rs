//! A run that takes longer than the broker waits for its acknowledgement: the broker closes the channel and delivers the request again.
//! That costs runs, never an answer, and it has an end.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::Request;
use millrace_tests::faulty::{self, RUNS_VARIABLE};
use millrace_tests::foreign::Foreign;
use millrace_tests::load::{Plan, Trial, say};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(120);
const SOME: usize = 200;
/// The least that brokers take seriously; half an hour unless told otherwise.
const IMPATIENT: &str = "[{rabbit,[{consumer_timeout,5000},{channel_tick_interval,1000}]}].";
/// Milliseconds of a run, which is longer.
const RUN_MS: u64 = 9_000;
/// Whichever of the workers has answered it knows it again; one that is still at it takes it once more.
const MOST_RUNS: usize = 2 * WORKERS;
const WORKERS: usize = 2;
const LONG: f32 = 5.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: `cargo xtask faults`"]
async fn a_run_longer_than_the_brokers_patience_is_answered_and_ends() {
    let options = BrokerOptions {
        plugins: Vec::new(),
        advanced_config: Some(IMPATIENT.to_owned()),
        ..BrokerOptions::default()
    };
    let broker = Broker::start(options).unwrap();
    let runs = tempfile::tempdir().unwrap();
    let long = format!("max_batch_size = 1\nmodel_warmup = false\n{ONE_INSTANCE}");
    let stack = Stack::on(&broker.amqp_url())
        .config("long", &long)
        .model("long", &models::slow(RUN_MS))
        .config("m", ONE_INSTANCE)
        .model("m", &models::scale(1.0));
    let start = || stack.faulty_worker_with(&[(RUNS_VARIABLE, runs.path().to_str().unwrap())]);
    let mut workers: [_; WORKERS] = std::array::from_fn(|_| start());
    for worker in &mut workers {
        worker.wait_for_line("ready worker=", READY).unwrap();
    }
    let trial = Trial::begin("ack timeout", &stack, stack.client().await, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    let client = stack.client().await;
    let row = Array2::from_elem((1, 4), LONG);
    let request = Request::new("long").deadline(PATIENCE).input_array("x", row.view()).unwrap();
    let response = client.infer(request).await.unwrap();
    assert_eq!(response.array::<f32>("y").unwrap(), row.into_dyn());
    trial.load().flows(SOME).await;
    // The other worker may run it, too, until it comes back to one that has answered it.
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let held = format!("{}.", stack.prefix());
    eventually("it is over", PATIENCE, async || {
        let queues = broker.ctl(&["list_queues", "--no-table-headers", "name", "messages"]).unwrap();
        let mut ours = queues.lines().filter_map(|line| line.strip_prefix(&held)?.split_once('\t'));
        ours.all(|(name, messages)| !name.contains("long") || messages == "0")
    })
    .await;
    let mut counts = BTreeMap::new();
    faulty::runs(runs.path(), |_, number| *counts.entry(number.to_bits()).or_insert(0) += 1).unwrap();
    let long = counts[&LONG.to_bits()];
    say(format_args!(
        "fault ack timeout: a run of twice the broker's patience was answered, after {long} runs in all"
    ));
    assert!((2..=MOST_RUNS).contains(&long), "{long} runs");
    assert_eq!(client.pending(), 0);
    client.close().await;
    // At the most it is kept for people as what no process got done with.
    while foreign.get("dead").await.is_some() {}
    for worker in &mut workers {
        assert!(worker.is_running(), "{}", worker.stderr());
    }
    trial.end().await;
}
