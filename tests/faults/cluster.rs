//! A cluster of three nodes loses one, and then two: requests and replies are in quorum queues, so nothing is lost.

use std::time::{Duration, Instant};

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::{Client, Code, Request};
use millrace_tests::load::{Plan, Trial, say};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};
use ndarray::Array2;
use tokio::sync::watch;

/// While a queue has no leader its publishers are refused, and ask again at once.
const PLAN: Plan = Plan { pause: Duration::from_millis(5), ..Plan::SINGLE };
const SOME: usize = 300;
/// A leader that is gone is replaced within this.
const STALL: Duration = Duration::from_secs(10);
/// What a request without a leader is given.
const SOON: Duration = Duration::from_secs(5);
/// A client that was refused while there was none has found it by then, with all its pauses.
const LED_AGAIN: Duration = Duration::from_secs(60);

/// Three nodes, of which the first is every queue's leader at first: queues are declared through it.
fn cluster() -> Vec<Broker> {
    let options = || BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() };
    let first = Broker::start(options()).unwrap();
    let cluster = first.cluster().unwrap();
    let join = || Broker::start(BrokerOptions { cluster: Some(cluster.clone()), ..options() }).unwrap();
    let others = [join(), join()];
    std::iter::once(first).chain(others).collect()
}

/// Publishes one request after the other until told to stop, and returns the longest time between two that the broker took.
async fn longest_stall(client: Client, is_over: watch::Receiver<bool>) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while !*is_over.borrow() {
        let request = Request::new("m").input_array("x", Array2::<f32>::zeros((1, 4)).view()).unwrap();
        if let Ok(handle) = client.submit(request).await {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            drop(handle.outcome().await);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.close().await;
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three brokers: `cargo xtask faults`"]
async fn leaders_and_followers_may_die() {
    let mut nodes = tokio::task::spawn_blocking(cluster).await.unwrap();
    let urls: Vec<String> = nodes.iter().map(Broker::amqp_url).collect();
    let stack = Stack::on(&urls[0])
        .set("TOPOLOGY__REPLY_QUEUE_TYPE", "quorum")
        .config("m", ONE_INSTANCE)
        .model("m", &models::slow(2));
    let all = urls.join(",");
    let addresses: [(&str, &str); 1] = [("MILLRACE_AMQP_URL", &all)];
    let _workers = [stack.worker_with(&addresses), stack.worker_with(&addresses)];
    let client = async || {
        let mut config = stack.client_config();
        config.broker.addresses = urls.iter().map(|url| url.parse().unwrap()).collect();
        config.topology.reply_queue_type = "quorum".to_owned().try_into().unwrap();
        Client::connect(config).await.unwrap()
    };
    let trial = Trial::begin("cluster", &stack, client().await, PLAN).await;
    trial.load().flows(SOME).await;
    let canceller = client().await;
    for (what, number) in [("leader", 0), ("follower", 2), ("another", 1)] {
        let (tell, is_over) = watch::channel(false);
        let watching = tokio::spawn(longest_stall(client().await, is_over));
        trial.load().flows(SOME).await;
        let mut node = nodes.remove(number);
        let node = tokio::task::spawn_blocking(move || {
            node.kill().unwrap();
            node
        });
        let mut node = node.await.unwrap();
        let cancel = || canceller.cancel(["nobody's".to_owned()]);
        let is_told = async || matches!(tokio::time::timeout(STALL, cancel()).await, Ok(Ok(())));
        eventually("workers are told of cancellations", STALL, is_told).await;
        trial.load().flows(SOME).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        tell.send(true).unwrap();
        let stall = watching.await.unwrap();
        say(format_args!("fault {what} of three killed: publishing stalled for {stall:?} at most"));
        assert!(stall <= STALL, "{stall:?}");
        let node = tokio::task::spawn_blocking(move || {
            node.start_again().unwrap();
            node
        });
        nodes.insert(number, node.await.unwrap());
        trial.load().flows(SOME).await;
    }
    canceller.close().await;
    // Without a majority nothing is taken; what was taken is still there when it comes back. A client that meets a leader which is dead is
    // served by the next one, while the dead one stays so.
    let dead = leader(&nodes, &format!("{}.request.m.premium", stack.prefix()));
    let mut dead = nodes.remove(dead);
    let mut config = stack.client_config();
    config.broker.addresses = vec![nodes[1].amqp_url().parse().unwrap()];
    let new = Client::connect(config).await.unwrap();
    let infer = async || {
        let row = Array2::<f32>::zeros((1, 4));
        let request = Request::new("m").tier("premium").deadline(SOON);
        new.infer(request.input_array("x", row.view()).unwrap()).await
    };
    let killing = tokio::task::spawn_blocking(move || {
        // Not the other way round: two of them would elect another.
        nodes[0].kill().unwrap();
        dead.kill().unwrap();
        (dead, nodes)
    });
    let (mut dead, mut nodes) = killing.await.unwrap();
    for _ in 0..5 {
        // RabbitMQ 3 refuses; 4 lets it wait, and its client gives up.
        let expected = if nodes[0].version().starts_with('3') { Code::Overloaded } else { Code::Unavailable };
        let error = infer().await.unwrap_err();
        assert_eq!(error.code(), expected, "{error}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let nodes = tokio::task::spawn_blocking(move || {
        nodes[0].start_again().unwrap();
        nodes
    });
    let _nodes = nodes.await.unwrap();
    let back = Instant::now();
    eventually("a new client is served", LED_AGAIN, async || infer().await.is_ok()).await;
    say(format_args!(
        "fault leader dead for good: a client that met it is served {:?} after there is a majority",
        back.elapsed()
    ));
    new.close().await;
    trial.load().flows(SOME).await;
    let starting = tokio::task::spawn_blocking(move || {
        dead.start_again().unwrap();
        dead
    });
    let _dead = starting.await.unwrap();
    trial.load().flows(SOME).await;
    trial.end_refused().await;
}

/// Which node leads a queue.
fn leader(nodes: &[Broker], queue: &str) -> usize {
    let queues = nodes[0].ctl(&["list_queues", "name", "leader"]).unwrap();
    let line = queues.lines().find(|line| line.split('\t').next() == Some(queue)).unwrap();
    nodes.iter().position(|node| line.contains(&format!("millrace{}@", node.port()))).unwrap()
}
