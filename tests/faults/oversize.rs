//! Bodies longer than a limit, ours or the broker's: a typed refusal at once, and whoever shares a client, a worker or the broker with
//! them is served.

use std::time::{Duration, Instant};

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::{Client, Code, Datatype, Error, Request, Tensor};
use millrace_tests::load::{Plan, Trial};
use millrace_tests::stack::{ONE_INSTANCE, Stack};

/// The broker's limit.
const BROKERS: usize = 200_000;
const SOME: usize = 200;
const TRIES: usize = 5;
/// Far below the deadline, which is a minute.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Rows of FP32 for `identity`, of so many bytes.
fn request(bytes: usize) -> Request {
    let shape = vec![1, i64::try_from(bytes / 4).unwrap()];
    Request::new("wide").input(Tensor::new("x", Datatype::Fp32, shape, vec![1; bytes].into()).unwrap())
}

/// The broker's list of who is connected: a connection that is lost comes again with another one's port.
fn connections(broker: &Broker) -> Vec<String> {
    let list = broker.ctl(&["list_connections", "--no-table-headers", "peer_port"]).unwrap();
    let mut ports: Vec<String> = list.lines().map(str::to_owned).collect();
    ports.sort();
    ports
}

async fn assert_too_large(client: &Client, request: Request, is_expected: impl Fn(&Error) -> bool) {
    let started = Instant::now();
    let error = client.infer(request).await.unwrap_err();
    assert!(error.code() == Code::TooLarge && is_expected(&error), "{error}");
    assert!(!error.is_retryable() && started.elapsed() < AT_ONCE, "{error} after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_is_refused_typed_and_harms_nobody() {
    let options = BrokerOptions {
        plugins: Vec::new(),
        config: vec![format!("max_message_size = {BROKERS}")],
        ..BrokerOptions::default()
    };
    let broker = Broker::start(options).unwrap();
    let stack = Stack::on(&broker.amqp_url())
        .config("m", ONE_INSTANCE)
        .model("m", &models::scale(1.0))
        .config("wide", ONE_INSTANCE)
        .model("wide", &models::doubled());
    let mut worker = stack.worker();
    let neighbour = stack.client().await;
    let trial = Trial::begin("too long", &stack, neighbour.clone(), Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    let before = connections(&broker);

    let mut config = stack.client_config();
    config.limits.max_body_bytes = BROKERS / 2;
    let careful = Client::connect(config).await.unwrap();
    let careless = stack.client().await;
    for _ in 0..TRIES {
        // The client's own limit: nothing is sent.
        assert_too_large(&careful, request(BROKERS), |error| matches!(error, Error::Invalid(_))).await;
        // The broker's: it ends the channel, with all that is under way on it.
        assert_too_large(&careless, request(BROKERS + 4), |error| matches!(error, Error::Refused { .. }))
            .await;
        // The answer's length, twice the request's, is the worker's to find out.
        assert_too_large(&careless, request(BROKERS * 3 / 4), |error| matches!(error, Error::Failed { .. }))
            .await;
        assert!(careless.infer(request(BROKERS / 4)).await.is_ok());
    }
    trial.load().flows(SOME).await;
    let after = connections(&broker);
    let lost = before.iter().filter(|port| !after.contains(port)).count();
    // The worker's, over which it publishes, has ended with the answers that were too long; the neighbour's have not.
    assert!(lost <= 1, "{lost} of {before:?} were lost: {after:?}");
    // They share a client, too.
    for _ in 0..TRIES {
        assert_too_large(&neighbour, request(BROKERS + 4), |error| matches!(error, Error::Refused { .. }))
            .await;
        trial.load().flows(SOME).await;
    }
    for client in [careful, careless] {
        client.close().await;
    }
    assert!(worker.is_running(), "{}", worker.stderr());
    trial.end().await;
}
