//! What processes tell all workers at once, over the control exchange.

use serde::{Deserialize, Serialize};

use crate::amqp::consumer::Delivery;
use crate::amqp::properties::Properties;
use crate::bounded;

/// The version of the format. Readers skip messages of a newer one.
pub const FORMAT: u32 = 1;
/// Ids in one message, at most.
pub const MAX_IDS: usize = 1_000;
/// Longest message that is read.
const MAX_BYTES: usize = 1 << 20;

/// One message. Whose requests it is about is told by `user_id`, as with requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// [`FORMAT`].
    pub format: u32,
    /// Requests that nobody waits for any more.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_IDS>")]
    pub cancel: Vec<String>,
    /// Whether the workers are to announce themselves now: somebody has begun to listen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub announce: bool,
}

impl Control {
    /// Cancels requests.
    pub fn cancel(ids: Vec<String>) -> Self {
        Self { format: FORMAT, cancel: ids, announce: false }
    }

    /// As a body.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text serializes")
    }

    /// Reads a delivery of a listener's queue, and is done with it.
    pub fn hear(delivery: Delivery) -> (Properties, Option<Self>) {
        // Stale, it is gone with its queue.
        let _ = delivery.ticket.ack();
        (delivery.properties, Self::read(&delivery.body))
    }

    /// Reads a body; `None` for what is too long, no message, or of a newer format.
    pub fn read(body: &[u8]) -> Option<Self> {
        let control: Self =
            Some(body).filter(|body| body.len() <= MAX_BYTES).map(serde_json::from_slice)?.ok()?;
        (control.format == FORMAT).then_some(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for control in
            [Control::cancel(vec!["a".to_owned()]), Control { announce: true, ..Control::cancel(vec![]) }]
        {
            assert_eq!(Control::read(&control.write()), Some(control));
        }
        assert_eq!(Control::read(b"{\"format\":1}"), Some(Control::cancel(vec![])));
        let many = Control::cancel(vec![String::new(); MAX_IDS + 1]);
        for body in [&b"{}"[..], b"[]", b"{\"format\":2,\"cancel\":[]}", b"\xff", &many.write()] {
            assert_eq!(Control::read(body), None);
        }
    }
}
