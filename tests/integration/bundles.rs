//! Several replies in one message, read by the wire contract alone.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use millrace_harness::models;
use millrace_tests::foreign::{Foreign, rows, text_header, with_header};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use serde_json::{Value, json};

const DELAY: &str = "max_batch_size = 16\ndynamic_batching = { max_queue_delay_microseconds = 300000 }\n";
const REQUESTS: usize = 16;
/// Replies allowed in a message.
const MOST: usize = 5;

pub(crate) fn allowing(properties: BasicProperties, most: usize) -> BasicProperties {
    with_header(properties, "x-replies-per-message", AMQPValue::LongLongInt(i64::try_from(most).unwrap()))
}

/// The replies in a message: id, status and body of each.
pub(crate) fn replies(message: &Delivery) -> Vec<(String, String, Value)> {
    let of = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let is_bundle = message
        .properties
        .content_type()
        .as_ref()
        .map(|kind| kind.as_str() == "application/vnd.millrace.replies");
    if is_bundle != Some(true) {
        let id = message.properties.message_id().clone().unwrap().to_string();
        return vec![(id, text_header(message, "x-status"), of(&message.data))];
    }
    let head_length: usize = text_header(message, "Inference-Header-Content-Length").parse().unwrap();
    let (head, mut bodies) = message.data.split_at(head_length);
    let head = of(head);
    assert!(!head["worker"].as_str().unwrap().is_empty());
    let entries = head["replies"].as_array().unwrap();
    let read = entries.iter().map(|entry| {
        let (body, rest) = bodies.split_at(usize::try_from(entry["bytes"].as_u64().unwrap()).unwrap());
        bodies = rest;
        let text = |name: &str| entry[name].as_str().unwrap().to_owned();
        (text("message_id"), text("status"), of(body))
    });
    let read = read.collect();
    assert!(bodies.is_empty());
    read
}

#[tokio::test]
async fn replies_come_together_to_those_who_take_them() {
    let stack =
        Stack::new().config("scale", &format!("{DELAY}{ONE_INSTANCE}")).model("scale", &models::scale(3.0));
    let mut worker = stack.worker();
    let requester = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let gone = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let mut ids = Vec::new();
    for value in 0..REQUESTS {
        let body = rows(&[[value as f32; 4]]);
        ids.push(requester.request_with("scale.free", allowing(requester.properties(), MOST), &body).await);
        // In the same batch: one who wants each alone, and one whose queue is no more.
        let alone = gone.properties().with_reply_to(requester.reply_key().into());
        ids.push(requester.request_with("scale.free", alone, &body).await);
        let nowhere = gone.properties().with_reply_to("guest.0123456789abcdefghijkl".into());
        requester.request_with("scale.free", allowing(nowhere, MOST), &body).await;
    }
    let mut got = Vec::new();
    let mut sizes = Vec::new();
    eventually("every request is answered", Duration::from_secs(20), async || {
        while let Some(message) = requester.get(&requester.reply_queue()).await {
            let replies = replies(&message);
            sizes.push(replies.len());
            got.extend(replies);
        }
        got.len() == 2 * REQUESTS
    })
    .await;
    for (id, status, body) in &got {
        let value = ids.iter().position(|sent| sent == id).unwrap() / 2;
        assert_eq!(status, "ok");
        assert_eq!(body["outputs"][0]["data"], json!(vec![3.0 * value as f32; 4]), "{id}");
    }
    got.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    got.dedup_by(|(a, ..), (b, ..)| a == b);
    assert_eq!(got.len(), 2 * REQUESTS, "each once");
    assert!(sizes.iter().all(|&size| size <= MOST), "more in a message than allowed: {sizes:?}");
    assert!(sizes.iter().any(|&size| size > 1), "none came together: {sizes:?}");
    assert!(
        sizes.iter().filter(|&&size| size == 1).count() >= REQUESTS,
        "some wanted theirs alone: {sizes:?}"
    );
    // Nobody takes the rest; their requests are done with all the same.
    worker.terminate();
    assert!(worker.wait(READY).unwrap().success());
    assert_eq!(requester.depth("request.scale.free").await, 0);
}
