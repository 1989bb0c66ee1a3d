//! A broker that stands still, as a paused virtual machine does: its sockets stay open and nothing answers. All goes on with it.

use std::time::Duration;

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::Client;
use millrace_tests::load::{Plan, Trial, say, setting};
use millrace_tests::stack::{ONE_INSTANCE, Stack};
use nix::sys::signal::Signal;

const SOME: usize = 200;
/// Seconds that it stands still; `cargo xtask faults` has it stand for a minute.
const SHORT: u64 = 5;
/// Noticed after two of these.
const HEARTBEAT: u16 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stands_still_costs_time_only() {
    let frozen_for = Duration::from_secs(setting("MILLRACE_FREEZE_SECONDS").unwrap_or(SHORT));
    let broker = Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Stack::on(&broker.amqp_url())
        .set("BROKER__HEARTBEAT_SECONDS", &HEARTBEAT.to_string())
        .config("m", ONE_INSTANCE)
        .model("m", &models::slow(2));
    let mut workers = [stack.worker(), stack.worker()];
    let mut config = stack.client_config();
    config.broker.heartbeat_seconds = HEARTBEAT;
    let client = Client::connect(config).await.unwrap();
    let trial = Trial::begin("frozen broker", &stack, client, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    for frozen_for in [Duration::from_millis(500), frozen_for] {
        broker.process().signal(Signal::SIGSTOP);
        // The fault itself takes this long.
        tokio::time::sleep(frozen_for).await;
        broker.process().signal(Signal::SIGCONT);
        let took = trial.load().flows(SOME).await;
        say(format_args!(
            "fault broker frozen for {frozen_for:?}: {SOME} more requests ended {took:?} after it went on"
        ));
    }
    for worker in &mut workers {
        assert!(worker.is_running(), "{}", worker.stderr());
    }
    trial.end().await;
}
