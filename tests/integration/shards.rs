//! Shards of a tier: tenants are spread over its queues, and another number of them loses nothing.

use std::time::Duration;

use lapin::types::AMQPValue;
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::topology::{ApplyError, Topology, apply};
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::foreign::{Foreign, rows, with_header};
use millrace_tests::management::User;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(30);
const SHARDS: u16 = 4;

fn sharded(stack: Stack) -> Stack {
    let tier = "name = \"free\"\nweight = 1\nmax_length = 10000\nmax_length_bytes = 10485760\ndefault_budget_ms = 60000";
    stack
        .file(&format!("[[topology.tiers]]\n{tier}\nshards = {SHARDS}\n"))
        .config("m", ONE_INSTANCE)
        .model("m", &models::scale(1.0))
}

/// What `millrace topology apply` does with so many shards configured.
async fn apply_shards(stack: &Stack, shards: u16) -> Result<(), ApplyError> {
    let mut config = stack.client_config();
    config.topology.tiers[0].shards = shards;
    let mut topology = Topology::shared(&config.topology);
    topology.extend(Topology::model(&config.topology, "m"));
    apply(&Connector::new(&config.broker, "test")?, &topology).await
}

/// Messages in each shard's queue.
async fn depths(foreign: &Foreign) -> Vec<u32> {
    let mut depths = vec![foreign.depth("request.m.free").await];
    for shard in 1..SHARDS {
        depths.push(foreign.depth(&format!("request.m.free.{shard}")).await);
    }
    depths
}

async fn hold(foreign: &Foreign, count: usize) {
    let what = format!("the shards hold {count} requests");
    let sum = async || depths(foreign).await.iter().sum::<u32>() as usize;
    eventually(&what, PATIENCE, async || sum().await == count).await;
}

#[tokio::test]
async fn tenants_are_spread_and_all_are_answered() {
    let stack = sharded(Stack::new());
    apply_shards(&stack, SHARDS).await.unwrap();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let users: Vec<User> =
        (0..6).map(|number| User::create(&format!("shards-{number}"), "secret", stack.prefix())).collect();
    let mut sent = Vec::new();
    for (number, user) in users.iter().enumerate() {
        let mut config = stack.client_config();
        config.broker.addresses = vec![user.amqp_url().parse().unwrap()];
        config.requests.pack_linger_us = 0;
        let client = Client::connect(config).await.unwrap();
        let row = Array2::from_elem((1, 4), number as f32);
        let request = Request::new("m").input_array("x", row.view()).unwrap();
        let handles = [client.submit(request.clone()).await.unwrap(), client.submit(request).await.unwrap()];
        sent.push((client, row, handles));
    }
    hold(&foreign, 12).await;
    let depths = depths(&foreign).await;
    assert!(depths.iter().filter(|&&depth| depth > 0).count() > 1, "{depths:?}");
    assert!(depths.iter().all(|depth| depth % 2 == 0), "a tenant's requests stay together: {depths:?}");
    let bare = foreign.request("m.free", &rows(&[[7.0; 4]])).await;

    let worker = stack.worker();
    let (answers, repeated) = foreign.answers(std::slice::from_ref(&bare), PATIENCE).await;
    answers[&bare].assert_row(7.0);
    assert_eq!(repeated, 0);
    for (client, row, handles) in sent {
        for handle in handles {
            assert_eq!(handle.outcome().await.unwrap().array::<f32>("y").unwrap(), row.clone().into_dyn());
        }
        let fleet = client.fleet().await;
        assert_eq!(fleet.workers().flat_map(|worker| &worker.lanes).count(), 1, "shards share a lane");
        client.close().await;
    }
    drop(worker);
}

#[tokio::test]
async fn another_number_of_shards_loses_nothing_and_routes_once() {
    let stack = sharded(Stack::new());
    apply_shards(&stack, SHARDS).await.unwrap();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let mut ids = Vec::new();
    let mut held = 0;
    for shards in [1, SHARDS, 2, SHARDS, 1] {
        // The broker takes each, whatever happens meanwhile; some are routed both ways.
        let during = publish(&foreign, 30);
        let (changed, during) = tokio::join!(apply_shards(&stack, shards), during);
        changed.unwrap();
        let before = depths(&foreign).await;
        let after = publish(&foreign, 20).await;
        held = before.iter().sum::<u32>() as usize + after.len();
        hold(&foreign, held).await;
        let grown = depths(&foreign).await.iter().zip(&before).filter(|(now, before)| now > before).count();
        assert!(grown <= usize::from(shards) && (grown > 1) == (shards > 1), "{grown} of {shards} shards");
        ids.extend(during);
        ids.extend(after);
    }
    // What is left in the former shards is served by a worker that still knows them.
    let _worker = stack.worker_with(&[("MILLRACE__TOPOLOGY__DECLARE", "false")]);
    let (answers, mut repeated) = foreign.answers(&ids, PATIENCE).await;
    assert!(answers.values().all(|answer| answer.status == "ok"), "{answers:?}");
    while foreign.reply(Duration::from_secs(1)).await.is_some() {
        repeated += 1;
    }
    assert_eq!(ids.len() + repeated, held);
}

/// Requests of as many tenants; every one is taken by some queue.
async fn publish(foreign: &Foreign, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let tenant = AMQPValue::LongString(format!("tenant-{number}").into());
        let properties = with_header(foreign.properties(), "x-tenant", tenant);
        ids.push(foreign.request_with("m.free", properties, &rows(&[[1.0; 4]])).await);
    }
    ids
}

#[tokio::test]
async fn a_broker_without_the_plugin_is_told_apart() {
    let broker = Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = sharded(Stack::on(&broker.amqp_url()));
    let mut worker = stack.starting_worker(&[]);
    assert_eq!(worker.wait(READY).unwrap().code(), Some(1));
    let remedy = "rabbitmq-plugins enable rabbitmq_consistent_hash_exchange";
    assert!(worker.stderr().contains(remedy), "{}", worker.stderr());
    let error = apply_shards(&stack, SHARDS).await.unwrap_err().to_string();
    assert!(error.contains(remedy) && error.contains(".shard.m.free"), "{error}");
    apply_shards(&stack, 1).await.unwrap();
}
