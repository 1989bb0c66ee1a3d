//! Turns what the broker dropped into an answer: its dead letters come here. Plain code.

use millrace_common::amqp::properties::Properties;
use millrace_common::amqp::topology::Names;
use millrace_common::protocol::status::Code;

use crate::job::{Answer, Verdict};

/// The broker's reason for the first death of a message, and where it died.
const REASON: &str = "x-first-death-reason";
const QUEUE: &str = "x-first-death-queue";

/// What becomes of a dead letter.
///
/// An expired request is answered. So is one that ended three processes while it ran by itself: it is poison, and kept for people.
/// Anything else should not happen and is kept too.
pub fn verdict(properties: &Properties, names: &Names) -> Verdict {
    let text = |name| properties.text(name).ok().flatten();
    match text(REASON) {
        Some("expired") => {
            let message = "the deadline passed while it waited in its queue";
            Verdict::Reply(Answer::failure(Code::DeadlineExceeded, message))
        }
        Some("delivery_limit") if text(QUEUE).is_some_and(|queue| names.is_solo_queue(queue)) => {
            Verdict::poison()
        }
        // Not its doing: it would have come to the queue of suspects long before.
        Some("delivery_limit") => {
            let message =
                "it was delivered too often without being run: workers end, or lose the broker, all the time";
            Verdict::Condemn { reason: "delivery_limit", answer: Answer::failure(Code::Unavailable, message) }
        }
        reason => Verdict::Dead {
            reason: "dead_lettered",
            detail: format!("by the broker, reason {}", reason.unwrap_or("unknown")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_of_dropped_requests_hear_why() {
        let names = Names::new("p");
        let verdict = |reason: &str, queue: &str| {
            let properties = Properties::new().with_text(REASON, reason).with_text(QUEUE, queue);
            match super::verdict(&properties, &names) {
                Verdict::Reply(answer) => (answer.failure, None),
                Verdict::Condemn { reason, answer } => (answer.failure, Some(reason)),
                _ => (None, None),
            }
        };
        assert_eq!(verdict("expired", "p.request.m.free"), (Some(Code::DeadlineExceeded), None));
        assert_eq!(verdict("delivery_limit", "p.solo.m"), (Some(Code::Poison), Some("poison")));
        let innocent = (Some(Code::Unavailable), Some("delivery_limit"));
        assert_eq!(
            verdict("delivery_limit", "p.request.m.free"),
            innocent,
            "nobody is poison who was not alone"
        );
        assert_eq!(verdict("maxlen", "p.request.m.free"), (None, None));
        assert!(matches!(super::verdict(&Properties::new(), &names), Verdict::Dead { .. }));
    }
}
