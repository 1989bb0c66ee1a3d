//! Messages of processes, made to cost as much memory for each byte as possible.

use bytes::Bytes;
use millrace_common::amqp::bundle::{self, MOST_REPLIES};
use millrace_common::amqp::message::header;
use millrace_common::amqp::properties::Properties;
use millrace_common::control::Control;
use millrace_harness::meter::peak_of;

const PEAK_PER_BYTE: usize = 4;
const PEAK_BASE: usize = 1 << 20;

fn assert_bounded(what: &str, input: usize, peak: usize) {
    assert!(peak <= PEAK_PER_BYTE * input + PEAK_BASE, "{what}: {input} bytes took {peak}");
}

/// A bundle of so many empty replies.
fn bundle_of(worker: &str, replies: usize) -> Bytes {
    let reply = r#"{"message_id":"","bytes":0,"status":"ok","queue_us":0,"batch_us":0,"infer_us":0,"batch_size":0,"attempt":0}"#;
    format!(r#"{{"worker":"{worker}","replies":[{}]}}"#, vec![reply; replies].join(",")).into()
}

#[test]
fn a_list_above_its_limit_is_refused_before_it_is_kept() {
    let cancel = format!(r#"{{"format":1,"cancel":[{}]}}"#, vec![r#""""#; 300_000].join(","));
    let (control, peak) = peak_of(|| Control::read(cancel.as_bytes()));
    assert_eq!(control, None);
    assert_bounded("cancellations", cancel.len(), peak);

    let read = |body: &Bytes| {
        let properties = Properties::new().with_count(header::HEADER_LENGTH, body.len() as u64);
        peak_of(|| bundle::read(&properties, body).map(|replies| replies.len()))
    };
    let body = bundle_of("w", 100_000);
    let (replies, peak) = read(&body);
    assert!(replies.is_err());
    assert_bounded("replies", body.len(), peak);
    // Every reply has a copy of it.
    let body = bundle_of(&"w".repeat(100_000), MOST_REPLIES);
    let (replies, peak) = read(&body);
    assert!(replies.is_err());
    assert_bounded("a long name", body.len(), peak);

    let body = bundle_of(&"w".repeat(255), MOST_REPLIES);
    let (replies, peak) = read(&body);
    assert_eq!(replies.unwrap(), MOST_REPLIES);
    assert_bounded("the largest bundle", body.len(), peak);
}
