//! Full queues: new requests are refused at once, and what was accepted before still comes back into its queue.

use std::time::{Duration, Instant};

use lapin::Confirmation;
use lapin::types::AMQPValue;
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::{Code, Error, Request};
use millrace_tests::foreign::{Foreign, rows, with_header};
use millrace_tests::load::{gives, say};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually, milestone};
use ndarray::Array2;
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);
const TIER_QUEUE: &str = "request.m.premium";

/// A refused dead letter is tried again after three minutes by default; nobody wants to watch that.
const TRY_AGAIN_SOON: &str = "[{rabbit,[{dead_letter_worker_publisher_confirm_timeout,1000}]}].";

/// One hop takes long enough to fill the queue meanwhile, and the worker fetches little ahead.
const SETTINGS: &str = "topology.retry_delays_ms = [1000, 2000]\nscheduling.prefetch_extra = 1\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_into_a_full_tier_queue_is_not_lost() {
    let options = BrokerOptions {
        plugins: Vec::new(),
        advanced_config: Some(TRY_AGAIN_SOON.to_owned()),
        ..BrokerOptions::default()
    };
    let broker = Broker::start(options).unwrap();
    let slow = format!("max_batch_size = 1\n{ONE_INSTANCE}");
    let one = Stack::on(&broker.amqp_url());
    let two = one.beside().file(SETTINGS).config("m", &slow).version("m", 2, &models::scale(2.0));
    let one = one.file(SETTINGS).config("m", &slow).version("m", 1, &models::slow(50));
    let mut first = one.talkative_worker("one");
    let pattern = format!("^{}\\.{}$", one.prefix(), TIER_QUEUE.replace('.', "\\."));
    broker.ctl(&["set_policy", "--apply-to", "queues", "small", &pattern, r#"{"max-length":2}"#]).unwrap();
    let mut foreign = Foreign::connect(one.amqp_url(), one.prefix()).await;
    let client = one.client().await;

    // Version 2 has no worker yet: the request hops to the retry queue.
    let pinned = with_header(foreign.properties(), "x-model-version", AMQPValue::LongInt(2));
    let pinned = foreign.request_with("m.premium", pinned, &rows(&[[1.0; 4]])).await;
    milestone(&mut first, "passing a request on").await;
    // Not only said, but done: it stays there for a second.
    eventually("it hopped", PATIENCE, async || foreign.depth("retry.1000").await == 1).await;

    // The worker takes nothing any more, and the queue fills while the request waits for its second chance.
    first.signal(Signal::SIGSTOP);
    let mut accepted = Vec::new();
    loop {
        let properties = foreign.properties();
        let id = properties.message_id().clone().expect("set").to_string();
        match foreign.publish("m.premium", properties, &rows(&[[accepted.len() as f32; 4]])).await {
            Confirmation::Ack(None) => accepted.push(id),
            Confirmation::Nack(None) => break,
            other => panic!("{other:?}"),
        }
        assert!(accepted.len() < 50, "the queue is never full");
    }
    let row = Array2::from_elem((1, 4), 1.0f32);
    let request = Request::new("m").tier("premium").input_array("x", row.view()).unwrap();
    let error = client.infer(request).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { code: Code::Overloaded, retry_after: Some(_), .. }), "{error}");
    assert!(error.is_retryable());

    // Its time in the retry queue is over, and the tier queue does not take it back.
    let held = format!("{}.retry.1000\t1\t0", one.prefix());
    let mut listed = String::new();
    eventually("the broker holds the dead letter", PATIENCE, async || {
        let columns = ["name", "messages", "messages_ready"];
        listed = broker.ctl(&[&["list_queues", "--no-table-headers"][..], &columns[..]].concat()).unwrap();
        listed.lines().any(|line| line == held)
    })
    .await;
    assert!(foreign.depth(TIER_QUEUE).await >= 2, "the queue is still full");

    let mut second = two.starting_worker(&[("MILLRACE__WORKER__NAME", "two")]);
    milestone(&mut second, "ready worker=").await;
    first.signal(Signal::SIGCONT);
    let ids = [vec![pinned.clone()], accepted.clone()].concat();
    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    assert_eq!(repeated, 0);
    answers[&pinned].assert_row(2.0);
    assert_eq!((answers[&pinned].worker.as_str(), answers[&pinned].version.as_str()), ("two", "2"));
    for (number, id) in accepted.iter().enumerate() {
        let factor = if answers[id].worker == "one" { 1.0 } else { 2.0 };
        answers[id].assert_row(number as f32 * factor);
    }
    for worker in [&mut first, &mut second] {
        worker.terminate();
        assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
    }
    assert!(foreign.leftovers().await.is_empty(), "somebody was answered twice");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_listener_that_takes_nothing_costs_its_workers_no_channel() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let _first = stack.worker();
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    foreign.bind_full("status", "#").await;
    // Nothing that this one announces every second is taken; two seconds are the patience with such a queue.
    let worker = stack.talkative_worker("w");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!worker.stderr().contains("another channel"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_takes_nothing_has_another_channel_tried_and_harms_no_other() {
    let broker = Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Stack::on(&broker.amqp_url()).config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let worker = stack.worker();
    worker.signal(Signal::SIGSTOP);
    let pattern = format!("^{}\\.{}$", stack.prefix(), TIER_QUEUE.replace('.', "\\."));
    broker.ctl(&["set_policy", "--apply-to", "queues", "small", &pattern, r#"{"max-length":1}"#]).unwrap();
    let foreign = Foreign::idle(&broker.amqp_url(), stack.prefix()).await;
    let publish = async || foreign.publish("m.premium", foreign.properties(), &rows(&[[1.0; 4]])).await;
    eventually("it is full", PATIENCE, async || publish().await == Confirmation::Nack(None)).await;
    let client = stack.client().await;
    let submit = async |model: &str, tier: &str, number: f32| {
        let row = Array2::from_elem((1, 4), number);
        client.submit(Request::new(model).tier(tier).input_array("x", row.view()).unwrap()).await
    };
    let (refused_for, mut longest, mut taken) = (Instant::now(), Duration::ZERO, Vec::new());
    let is_another = tokio::task::spawn_blocking(move || {
        // Of all channels only those that publish are confirmed, and each begins as the first of its connection.
        let channels = || broker.ctl(&["list_channels", "--no-table-headers", "number", "confirm"]).unwrap();
        while !channels().lines().any(|channel| channel.ends_with("true") && !channel.starts_with("1\t")) {
            assert!(refused_for.elapsed() < PATIENCE, "{}", channels());
        }
        broker
    });
    while !is_another.is_finished() {
        let (number, began) = (taken.len() as f32, Instant::now());
        let (full, free, absent) = tokio::join!(
            submit("m", "premium", number),
            async { (submit("m", "free", number).await, began.elapsed()) },
            submit("absent", "free", number),
        );
        assert_eq!(full.unwrap_err().code(), Code::Overloaded);
        assert_eq!(absent.unwrap_err().code(), Code::UnknownModel);
        taken.push(free.0.unwrap());
        longest = longest.max(free.1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _broker = is_another.await.unwrap();
    say(format_args!(
        "fault queue that takes nothing: another channel was tried within {:?}; others waited {longest:?} at most",
        refused_for.elapsed()
    ));
    worker.signal(Signal::SIGCONT);
    for (number, handle) in taken.into_iter().enumerate() {
        assert!(gives(&handle.outcome().await.unwrap(), number as f32));
    }
    let premium = async || submit("m", "premium", 1.0).await.is_ok();
    eventually("it takes something again", PATIENCE, premium).await;
    client.close().await;
}
