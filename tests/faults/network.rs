//! Networks that swallow, delay and cut: between a worker and its broker, and between a client and its broker.

use std::time::Duration;

use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Request};
use millrace_tests::load::{Plan, Trial, say, seed};
use millrace_tests::proxy::{Proxy, Way, Weather};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Requests that are to be answered before, during and after a fault.
const SOME: usize = 200;
/// A dead link is noticed after two heartbeats.
const HEARTBEAT: &str = "1";
/// Longer than it takes to notice.
const HOLE: Duration = Duration::from_secs(4);
const HOLES: [Weather; 3] = [
    Weather { there: Way::BlackHole, back: Way::Open },
    Weather { there: Way::Open, back: Way::BlackHole },
    Weather { there: Way::BlackHole, back: Way::BlackHole },
];

fn stack() -> Stack {
    Stack::new()
        .set("BROKER__HEARTBEAT_SECONDS", HEARTBEAT)
        .config("m", ONE_INSTANCE)
        .model("m", &models::slow(2))
}

/// A client that reaches the broker through a proxy.
async fn client_behind(proxy: &Proxy, stack: &Stack) -> Client {
    let mut config = stack.client_config();
    config.broker.heartbeat_seconds = HEARTBEAT.parse().unwrap();
    config.broker.addresses = vec![proxy.amqp_url().parse().unwrap()];
    Client::connect(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_between_worker_and_broker_costs_time_only() {
    let stack = stack();
    let proxy = Proxy::before(stack.amqp_url()).await;
    let mut worker = stack.worker_with(&[("MILLRACE_AMQP_URL", proxy.amqp_url())]);
    let _other = stack.worker();
    let trial = Trial::begin("black hole at a worker", &stack, stack.client().await, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    for hole in HOLES {
        proxy.set(hole);
        // The other one has to carry it all, what the lost one held included.
        trial.load().flows(SOME).await;
        tokio::time::sleep(HOLE).await;
        proxy.set(Weather::FAIR);
        trial.load().flows(SOME).await;
    }
    assert!(worker.is_running(), "{}", worker.stderr());
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_between_client_and_broker_costs_time_only() {
    let stack = stack();
    let proxy = Proxy::before(stack.amqp_url()).await;
    let _worker = stack.worker();
    let client = client_behind(&proxy, &stack).await;
    let trial = Trial::begin("black hole at a client", &stack, client, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    for hole in HOLES {
        proxy.set(hole);
        tokio::time::sleep(HOLE).await;
        proxy.set(Weather::FAIR);
        trial.load().flows(SOME).await;
    }
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_lost_its_connections_is_back_before_the_broker_has_noticed() {
    // Until two heartbeats have been missed the broker keeps what was that connection's, its control queue too.
    let stack = Stack::new().set("BROKER__HEARTBEAT_SECONDS", "60").model("m", &models::slow(2));
    let proxy = Proxy::before(stack.amqp_url()).await;
    let worker = stack.worker_with(&[("MILLRACE_AMQP_URL", proxy.amqp_url())]);
    let client = stack.client().await;
    let infer = async || {
        let row = Array2::<f32>::zeros((1, 4));
        client.infer(Request::new("m").input_array("x", row.view()).unwrap()).await
    };
    infer().await.unwrap();
    proxy.set(Weather { there: Way::Forgotten, back: Way::Forgotten });
    let has_lost = |line: &str| line.contains("lost, reconnecting") && line.contains("\"requests\"");
    eventually("the worker notices", READY, async || worker.stderr().lines().any(has_lost)).await;
    proxy.set(Weather::FAIR);
    // The broker gives the one that is gone its share of them.
    let is_served = async || matches!(tokio::time::timeout(Duration::from_secs(1), infer()).await, Ok(Ok(_)));
    eventually("the worker serves again", Duration::from_secs(30), is_served).await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_network_in_single_bytes_is_slow_and_no_more() {
    let stack = stack();
    let proxy = Proxy::before(stack.amqp_url()).await;
    let slow = Way::Slow { latency: Duration::from_millis(250), slice: 1 };
    let _worker = stack.worker_with(&[("MILLRACE_AMQP_URL", proxy.amqp_url())]);
    let client = client_behind(&proxy, &stack).await;
    let trial = Trial::begin("slow network", &stack, client, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    proxy.set(Weather { there: slow, back: slow });
    trial.load().flows(SOME).await;
    proxy.set(Weather::FAIR);
    trial.load().flows(SOME).await;
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_of_half_a_second_each_way_delays_and_no_more() {
    const FEW: usize = 100;
    // Its heartbeats are late as well, but come as often as ever.
    let stack = stack();
    let proxy = Proxy::before(stack.amqp_url()).await;
    let late = Way::Late(Duration::from_millis(500));
    let mut worker = stack.worker_with(&[("MILLRACE_AMQP_URL", proxy.amqp_url())]);
    let client = client_behind(&proxy, &stack).await;
    let trial = Trial::begin("late network", &stack, client, Plan::SINGLE).await;
    trial.load().flows(FEW).await;
    let connected = |worker: &WorkerProcess| worker.stderr().matches("connected to the broker").count();
    let before = connected(&worker);
    proxy.set(Weather { there: late, back: late });
    // The first of them may have been on their way before.
    trial.load().flows(Plan::SINGLE.in_flight).await;
    let took = trial.load().flows(FEW).await;
    say(format_args!(
        "fault late network: {FEW} requests took {took:?} with 500 ms each way to worker and client"
    ));
    // To the broker, to the worker, back to the broker, to the client.
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert_eq!(connected(&worker), before, "a late link was taken for a dead one:\n{}", worker.stderr());
    proxy.set(Weather::FAIR);
    trial.load().flows(FEW).await;
    assert!(worker.is_running());
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_at_any_byte_lose_nothing() {
    const CUTS: usize = 12;
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let stack = stack();
    let (at_worker, at_client) =
        (Proxy::before(stack.amqp_url()).await, Proxy::before(stack.amqp_url()).await);
    let mut worker = stack.worker_with(&[("MILLRACE_AMQP_URL", at_worker.amqp_url())]);
    let client = client_behind(&at_client, &stack).await;
    let trial = Trial::begin("cut connections", &stack, client, Plan::SINGLE).await;
    for number in 0..CUTS {
        trial.load().flows(SOME / 4).await;
        let cut = Way::CutAfter(random.random_range(1..20_000));
        let weather = match random.random_range(0..2) {
            0 => Weather { there: cut, ..Weather::FAIR },
            _ => Weather { back: cut, ..Weather::FAIR },
        };
        [&at_worker, &at_client][number % 2].set(weather);
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        // Else every new connection would be cut as early.
        at_worker.set(Weather::FAIR);
        at_client.set(Weather::FAIR);
    }
    trial.end().await;
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
}
