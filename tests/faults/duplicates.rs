//! The same request twice in its queue, as publishes without a confirm bring about: both may run, its caller sees one answer, and nobody
//! else sees any.

use std::collections::HashSet;
use std::time::Duration;

use lapin::Confirmation;
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(60);
const REQUESTS: usize = 40;

fn stack() -> Stack {
    Stack::new().config("m", &format!("max_batch_size = 4\n{ONE_INSTANCE}")).model("m", &models::slow(5))
}

#[tokio::test]
async fn a_foreign_client_gets_an_answer_to_each_copy() {
    let stack = stack();
    let _worker = stack.worker();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let properties = foreign.properties();
    let id = properties.message_id().clone().unwrap().to_string();
    for _ in 0..2 {
        foreign.request_with("m.premium", properties.clone(), &rows(&[[7.0; 4]])).await;
    }
    for _ in 0..2 {
        let answer = foreign.reply(PATIENCE).await.unwrap();
        assert_eq!(answer.id, id);
        answer.assert_row(7.0);
    }
    assert!(foreign.leftovers().await.is_empty(), "more answers than copies");
}

/// Doubles every request of the library's clients, as seen by somebody who listens to the exchange.
async fn double(foreign: &Foreign, tap: &str, count: usize) {
    let mut doubled = HashSet::new();
    while doubled.len() < count {
        eventually("a request passes", PATIENCE, async || foreign.depth(tap).await > 0).await;
        let request = foreign.get(tap).await.unwrap();
        // Copies pass, too.
        if doubled.insert(request.properties.message_id().clone()) {
            let key = request.routing_key.to_string();
            let confirmed = foreign.publish(&key, request.properties, &request.data).await;
            assert_eq!(confirmed, Confirmation::Ack(None));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_librarys_caller_sees_one_and_another_client_none() {
    let stack = stack();
    let mut worker = stack.worker();
    let mut config = stack.client_config();
    // Each in a message of its own, one after the other.
    config.requests.pack_linger_us = 0;
    let (client, other) =
        (Client::connect(config.clone()).await.unwrap(), Client::connect(config).await.unwrap());
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let tap = foreign.tap("request", "m.#").await;
    let infer = async |client: &Client, value: f32| {
        let row = Array2::from_elem((1, 4), value);
        let request = Request::new("m").input_array("x", row.view()).unwrap();
        let response = client.infer(request).await.unwrap();
        assert_eq!(response.array::<f32>("y").unwrap(), row.into_dyn());
    };
    let asking = async {
        for number in 0..REQUESTS {
            let number = number as f32;
            tokio::join!(infer(&client, number), infer(&other, -number));
        }
    };
    let ((), ()) = tokio::join!(asking, double(&foreign, &tap, 2 * REQUESTS));
    // The copies have been run and answered, or are about to be: the worker is empty when it has ended in order.
    eventually("the copies are done with", PATIENCE, async || {
        let fleet = client.fleet().await;
        let is_idle = fleet.workers().flat_map(|worker| &worker.lanes).all(|lane| lane.bytes == 0);
        is_idle && foreign.depth("request.m.free").await == 0
    })
    .await;
    for client in [client, other] {
        assert_eq!(client.pending(), 0);
        infer(&client, 3.0).await;
        client.close().await;
    }
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
}
