//! Properties that the client library cannot read, or dies of: the worker does not, and its neighbours are served.

use std::time::Duration;

use millrace_harness::models;
use millrace_tests::foreign::{Foreign, rows, text_header};
use millrace_tests::raw::Raw;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const HEADERS: u16 = 1 << 13;
const CORRELATION_ID: u16 = 1 << 10;
const EXPIRATION: u16 = 1 << 8;

pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// A header table of one entry `h`.
pub(crate) fn table(value: &[u8]) -> Vec<u8> {
    sized(&[&[1, b'h'], value].concat())
}

/// Arrays inside each other.
pub(crate) fn nested(depth: usize) -> Vec<u8> {
    let mut value = vec![b'V'];
    for _ in 0..depth {
        value.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        value.push(b'A');
    }
    // Built from the inside outwards, back to front: every level's length and kind stand before it.
    value.reverse();
    value
}

#[tokio::test]
async fn unreadable_properties_are_kept_for_people_and_harm_nobody() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let mut worker = stack.worker();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let requests = format!("{}.request", stack.prefix());
    let body = rows(&[[1.0; 4]]);
    let long_value = [b"S", &sized(&[b'x'; 130_900])[..]].concat();
    let bad: [(u16, Vec<u8>); 4] = [
        (CORRELATION_ID, vec![1, 0xff]),
        (HEADERS, sized(&[1, 0xff, b'V'])),
        (HEADERS, table(&nested(20_000))),
        (HEADERS, table(&long_value)),
    ];
    let mut raw = Raw::connect(stack.amqp_url());
    let mut ids = Vec::new();
    for (flags, properties) in &bad {
        raw.publish(&requests, "m.premium", *flags, properties, &body);
        ids.push(foreign.request("m.premium", &body).await);
    }
    let (answers, repeated) = foreign.answers(&ids, PATIENCE).await;
    assert_eq!((answers.len(), repeated), (bad.len(), 0));

    // Too long for a frame only once the broker has added how it expired.
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    assert!(!worker.stderr().contains("connection to the broker lost"), "{}", worker.stderr());
    let properties = [&table(&long_value)[..], &[2, b'5', b'0']].concat();
    raw.publish(&requests, "m.premium", HEADERS | EXPIRATION, &properties, &body);
    eventually("it expires", PATIENCE, async || foreign.depth("dead.inbox").await >= 1).await;
    let mut worker = stack.worker();
    eventually("all are kept", PATIENCE, async || foreign.depth("dead").await as usize == bad.len() + 1)
        .await;
    for _ in 0..=bad.len() {
        let kept = foreign.get("dead").await.unwrap();
        let reason = text_header(&kept, "x-dead-reason");
        let reasons = ["unreadable_properties", "oversized_headers", "dead_lettered"];
        assert!(reasons.contains(&reason.as_str()), "{reason}");
        assert_eq!(kept.data, body);
    }
    let id = foreign.request("m.free", &body).await;
    foreign.answers(&[id], PATIENCE).await.0.into_values().for_each(|answer| answer.assert_row(1.0));
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    assert!(!worker.stderr().contains("connection to the broker lost"), "{}", worker.stderr());
}
