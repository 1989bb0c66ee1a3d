//! Messages that must not be answered nor run. Plain code.

use millrace_common::amqp::message::header;
use millrace_common::amqp::properties::Properties;

/// Headers of a request, at most. They pass through queues and workers that add to them, and must still fit one frame then.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Why a message must not be answered nor run, if so, in the queue of `queue_key`. The broker's permissions do not catch these.
pub fn hostility(
    queue_key: &str,
    routing_key: &str,
    properties: &Properties,
    reply_to: Option<&String>,
) -> Option<(&'static str, String)> {
    if let Ok(Some(reason)) = properties.text(header::UNREADABLE) {
        return Some(("unreadable_properties", reason.to_owned()));
    }
    let header_bytes = properties.header_bytes();
    if header_bytes > MAX_HEADER_BYTES {
        let detail = format!("{header_bytes} bytes of headers, the limit is {MAX_HEADER_BYTES}");
        return Some(("oversized_headers", detail));
    }
    if properties.has_header("CC") || properties.has_header("BCC") {
        return Some(("sender_selected", "CC and BCC headers are refused: they evade tiers".to_owned()));
    }
    if routing_key != queue_key {
        let detail = format!("routing key `{routing_key}` in the queue of `{queue_key}`");
        return Some(("foreign_routing_key", detail));
    }
    reply_to.map(|problem| ("invalid_reply_to", problem.clone()))
}
