//! The queues that a request hops over are full: of retries, and of the broker's dead letters. It waits, its neighbours do not, and it is
//! answered once there is room.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::Confirmation;
use lapin::types::AMQPValue;
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_tests::foreign::{Answer, Foreign, rows, with_header};
use millrace_tests::load::{Plan, Trial};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const SOME: usize = 200;
/// Many times what the queue takes.
const HOPS: usize = 40;
/// A quorum queue takes a few more, as it is told of its length late.
const ROOM: usize = 2;

/// A broker that tries a refused dead letter again soon, not after three minutes.
fn broker() -> Broker {
    let soon = "[{rabbit,[{dead_letter_worker_publisher_confirm_timeout,1000}]}].";
    let options =
        BrokerOptions { plugins: Vec::new(), advanced_config: Some(soon.to_owned()), ..Default::default() };
    Broker::start(options).unwrap()
}

fn limit(broker: &Broker, stack: &Stack, queue: &str) {
    let pattern = format!("^{}\\.{}$", stack.prefix(), queue.replace('.', "\\."));
    let length = format!(r#"{{"max-length":{ROOM}}}"#);
    broker.ctl(&["set_policy", "--apply-to", "queues", "small", &pattern, &length]).unwrap();
}

fn assert_all(answers: &BTreeMap<String, Answer>, is_right: impl Fn(&Answer) -> bool) {
    let wrong = answers.values().find(|answer| !is_right(answer));
    assert!(wrong.is_none(), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_retry_queue_holds_up_no_other_request_and_loses_none() {
    let broker = broker();
    let settings = "topology.retry_delays_ms = [1000]\n";
    let one = Stack::on(&broker.amqp_url());
    let two = one.beside().file(settings).config("m", ONE_INSTANCE).version("m", 2, &models::scale(1.0));
    let one = one.file(settings).config("m", ONE_INSTANCE).version("m", 1, &models::scale(1.0));
    let mut first = one.worker();
    limit(&broker, &one, "retry.1000");
    let trial = Trial::begin("full retry queue", &one, one.client().await, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    let mut second = two.worker();
    let mut foreign = Foreign::connect(one.amqp_url(), one.prefix()).await;
    let pinned = || with_header(foreign.properties(), "x-model-version", AMQPValue::LongInt(2));
    let mut ids = Vec::new();
    let retry = format!("{}.retry.1000", one.prefix());
    loop {
        let (properties, body) = (pinned(), rows(&[[ids.len() as f32; 4]]));
        let id = properties.message_id().clone().unwrap().to_string();
        match foreign.publish_to(&retry, "m.premium", properties, &body).await {
            Confirmation::Ack(None) => ids.push(id),
            Confirmation::Nack(None) => break,
            other => panic!("{other:?}"),
        }
        assert!(ids.len() < HOPS, "the queue is never full");
    }
    // Each worker gets every other one, and the first has to pass its own on.
    for _ in 0..HOPS {
        ids.push(foreign.request_with("m.premium", pinned(), &rows(&[[ids.len() as f32; 4]])).await);
    }
    trial.load().flows(SOME).await;
    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    assert_eq!(repeated, 0);
    for (number, id) in ids.iter().enumerate() {
        answers[id].assert_row(number as f32);
        assert_eq!(answers[id].version, "2");
    }
    for worker in [&mut first, &mut second] {
        assert!(worker.is_running(), "{}", worker.stderr());
    }
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_find_their_queue_full_are_answered_all_the_same() {
    let broker = broker();
    let stack = Stack::on(&broker.amqp_url()).config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    // Declares the queues, and leaves them to nobody.
    let mut worker = stack.worker();
    worker.terminate();
    worker.wait(PATIENCE).unwrap();
    limit(&broker, &stack, "dead.inbox");
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let mut ids = Vec::new();
    for _ in 0..HOPS {
        let brief = foreign.properties().with_expiration("100".into());
        ids.push(foreign.request_with("m.free", brief, &rows(&[[1.0; 4]])).await);
    }
    eventually("the queue of dead letters is full", PATIENCE, async || {
        foreign.depth("dead.inbox").await as usize >= ROOM && foreign.depth("request.m.free").await == 0
    })
    .await;
    assert!((foreign.depth("dead.inbox").await as usize) < HOPS, "it took all: the limit was no limit");
    let _worker = stack.worker();
    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    assert_all(&answers, |answer| answer.status == "deadline_exceeded");
    assert_eq!(repeated, 0);
    assert!(foreign.leftovers().await.is_empty(), "somebody was answered twice");
}
