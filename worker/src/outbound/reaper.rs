//! Turns what the broker dropped into an answer: its dead letters come here. Plain code.

use millrace_common::amqp::properties::Properties;
use millrace_common::protocol::status::Code;

use crate::job::{Answer, Verdict};

/// The broker's reason for the first death of a message.
const REASON: &str = "x-first-death-reason";

/// What becomes of a dead letter.
///
/// An expired request is answered; anything else should not happen in a tier queue and is kept for people too.
pub fn verdict(properties: &Properties) -> Verdict {
    match properties.text(REASON) {
        Ok(Some("expired")) => {
            let message = "the deadline passed while it waited in its queue";
            Verdict::Reply(Answer::failure(Code::DeadlineExceeded, message))
        }
        Ok(Some("delivery_limit")) => {
            let message = "it was delivered too often without being answered; the workers that ran it ended";
            Verdict::Reply(Answer::failure(Code::Poison, message))
        }
        reason => Verdict::Dead {
            reason: "dead_lettered",
            detail: format!("by the broker, reason {}", reason.ok().flatten().unwrap_or("unknown")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_of_dropped_requests_hear_why() {
        let code = |reason: &str| match verdict(&Properties::new().with_text(REASON, reason)) {
            Verdict::Reply(answer) => answer.failure,
            _ => None,
        };
        assert_eq!(code("expired"), Some(Code::DeadlineExceeded));
        assert_eq!(code("delivery_limit"), Some(Code::Poison));
        assert!(matches!(verdict(&Properties::new()), Verdict::Dead { .. }));
    }
}
