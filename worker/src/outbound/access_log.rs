//! A line for each request and what became of it, while `features.access_log` is on. No input and no output is in it.

use millrace_common::amqp::message::since_epoch;
use tracing::info;

use crate::job::{Settlement, Verdict, micros};

/// Logs one request. `compose/config/worker.toml` says what its fields are.
pub fn tell((duty, verdict): &Settlement) {
    let (id, tenant, key) = (duty.request_id.as_deref(), &duty.tenant, &duty.original.routing_key);
    let answer = match verdict {
        Verdict::Reply(answer) | Verdict::Condemn { answer, .. } => Some(answer),
        _ => None,
    };
    let outcome = match verdict {
        Verdict::Reply(answer) | Verdict::Condemn { answer, .. } => {
            answer.failure.map_or("ok", |code| code.as_str())
        }
        Verdict::Retry { .. } => "retry",
        Verdict::Solo { .. } => "solo",
        Verdict::Dead { reason, .. } => reason,
        Verdict::GiveBack => "given_back",
        Verdict::Done => "answered_before",
    };
    let timing = answer.map(|answer| answer.timing).unwrap_or_default();
    let (total, now) = (duty.arrived.elapsed(), since_epoch());
    let degraded = duty.descent.as_ref().map(|descent| &*descent.label);
    info!(
        target: "millrace_worker::access",
        id, tenant = &**tenant, key, outcome, degraded,
        attempt = duty.attempt,
        request_bytes = duty.original.body.len(),
        reply_bytes = answer.map_or(0, |answer| answer.body.bytes.len()),
        queue_us = timing.queue_us,
        batch_us = timing.batch_us,
        infer_us = timing.infer_us,
        batch_size = timing.batch_size,
        total_us = micros(total),
        arrived_us = micros(now.saturating_sub(total)),
        "request"
    );
}
