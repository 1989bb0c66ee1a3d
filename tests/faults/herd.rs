//! Two hundred clients over a restart of their broker: all come back by themselves and are answered.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::load::say;
use millrace_tests::stack::{ONE_INSTANCE, Stack};
use ndarray::Array2;

const CLIENTS: usize = 200;
/// Clients that connect at once in the beginning.
const CONNECTING: usize = 16;
const PATIENCE: Duration = Duration::from_secs(180);
/// From the broker's first answer until the last client has its own.
const BACK_WITHIN: Duration = Duration::from_secs(60);

async fn infer(client: &Client, number: usize) {
    let row = Array2::from_elem((1, 4), number as f32);
    let request = Request::new("m").deadline(PATIENCE).input_array("x", row.view()).unwrap();
    let response = client.infer(request).await.unwrap_or_else(|error| panic!("client {number}: {error}"));
    assert_eq!(response.array::<f32>("y").unwrap(), row.into_dyn(), "client {number}");
}

async fn infer_all(clients: &[Client]) {
    join_all(clients.iter().enumerate().map(|(number, client)| infer(client, number))).await;
}

fn connections(broker: &Broker) -> usize {
    broker.ctl(&["list_connections", "--no-table-headers", "pid"]).unwrap().lines().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "four hundred connections: `cargo xtask faults`"]
async fn a_herd_of_clients_comes_back_after_a_restart() {
    let mut broker =
        Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Stack::on(&broker.amqp_url()).config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let mut worker = stack.worker();
    // Not all at once: it is their coming back that is looked at.
    let connecting = stream::iter((0..CLIENTS).map(|_| stack.client())).buffer_unordered(CONNECTING);
    let clients: Vec<Client> = connecting.collect().await;
    infer_all(&clients).await;
    let (before, memory_before) = (connections(&broker), broker.memory_mib().unwrap());
    // Requests that are under way at the restart, and one each after it.
    let asking = clients.clone();
    let under_way = tokio::spawn(async move { infer_all(&asking).await });
    let broker = tokio::task::spawn_blocking(move || {
        broker.kill().unwrap();
        broker.start_again().unwrap();
        broker
    });
    let broker = broker.await.unwrap();
    let started = Instant::now();
    under_way.await.unwrap();
    infer_all(&clients).await;
    let took = started.elapsed();
    let (after, memory_after) = (connections(&broker), broker.memory_mib().unwrap());
    say(format_args!(
        "fault herd: {CLIENTS} clients ({before} connections, {after} after it) were all answered {took:?} after the broker's crash \
         and start; it held {memory_before} MiB before and {memory_after} MiB after"
    ));
    assert!(took < BACK_WITHIN, "{took:?}");
    assert!(after <= before, "connections are left over: {before}, then {after}");
    for client in &clients {
        assert_eq!(client.pending(), 0);
    }
    join_all(clients.iter().map(Client::close)).await;
    assert!(worker.is_running(), "{}", worker.stderr());
}
