//! Which settlements leave the worker together: the small replies of one batch to one requester that takes several in a
//! message. Plain code.

use std::collections::HashMap;

use millrace_common::amqp::bundle::MOST_REPLIES;
use millrace_common::amqp::message::ReplyKey;

use crate::job::{Answer, Duty, Settlement, Verdict};

/// A reply of more bytes goes alone: its own message costs it little, and copying it into a bundle would cost more.
const MOST_REPLY_BYTES: usize = 8 << 10;
/// Bytes of bodies in a bundle, at most: whoever keeps one reply of it may keep the whole in memory.
const MOST_BYTES: usize = 64 << 10;

/// What is settled by one publish, or by none.
#[derive(Debug)]
pub enum Errand {
    /// One duty.
    One(Box<Settlement>),
    /// Replies to one requester, two or more.
    Replies(ReplyKey, Vec<(Duty, Answer)>),
}

/// A bundle that is being filled.
#[derive(Default)]
struct Open {
    replies: Vec<(Duty, Answer)>,
    bytes: usize,
}

impl Open {
    fn close(&mut self, reply_to: &ReplyKey, errands: &mut Vec<Errand>) {
        let Self { mut replies, .. } = std::mem::take(self);
        if replies.len() > 1 {
            errands.push(Errand::Replies(reply_to.clone(), replies));
        } else {
            errands.extend(replies.pop().map(alone));
        }
    }
}

fn alone((duty, answer): (Duty, Answer)) -> Errand {
    Errand::One(Box::new((duty, Verdict::Reply(answer))))
}

/// Joins what may leave together; each requester's replies keep their order.
pub fn gather(settlements: Vec<Settlement>) -> Vec<Errand> {
    let mut errands = Vec::new();
    let mut open: HashMap<ReplyKey, Open> = HashMap::new();
    for (duty, verdict) in settlements {
        let most = usize::from(duty.replies_per_message).min(MOST_REPLIES);
        match (verdict, &duty.reply_to) {
            (Verdict::Reply(answer), Some(reply_to))
                if most > 1 && answer.body.bytes.len() <= MOST_REPLY_BYTES =>
            {
                if !open.contains_key(reply_to) {
                    open.insert(reply_to.clone(), Open::default());
                }
                let bundle = open.get_mut(reply_to).expect("inserted above");
                if bundle.replies.len() >= most || bundle.bytes + answer.body.bytes.len() > MOST_BYTES {
                    bundle.close(reply_to, &mut errands);
                }
                bundle.bytes += answer.body.bytes.len();
                bundle.replies.push((duty, answer));
            }
            (verdict, _) => errands.push(Errand::One(Box::new((duty, verdict)))),
        }
    }
    open.iter_mut().for_each(|(reply_to, bundle)| bundle.close(reply_to, &mut errands));
    errands
}
