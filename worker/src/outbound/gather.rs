//! Which settlements leave the worker together: the small replies of one batch to one requester that takes several in a
//! message. Plain code.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

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

/// A reply that may leave with others: to whom, how many its requester takes in a message, and its bytes.
struct Offer {
    reply_to: ReplyKey,
    most: usize,
    bytes: usize,
}

/// A bundle that is being filled.
struct Open<T> {
    members: Vec<T>,
    /// The least that one of their requests allows.
    most: usize,
    bytes: usize,
}

/// Everything by itself.
pub fn apart(settlements: Vec<Settlement>) -> Vec<Errand> {
    settlements.into_iter().map(|settlement| Errand::One(Box::new(settlement))).collect()
}

/// Joins what may leave together.
pub fn gather(settlements: Vec<Settlement>) -> Vec<Errand> {
    let mut errands = Vec::new();
    let mut replies = Vec::new();
    for (duty, verdict) in settlements {
        match (offer(&duty, &verdict), verdict) {
            (Some(offer), Verdict::Reply(answer)) => replies.push((offer, (duty, answer))),
            (_, verdict) => errands.push(Errand::One(Box::new((duty, verdict)))),
        }
    }
    for (reply_to, mut together) in bundles(replies) {
        match (together.len(), together.pop()) {
            (1, Some((duty, answer))) => {
                errands.push(Errand::One(Box::new((duty, Verdict::Reply(answer)))));
            }
            (_, last) => {
                together.extend(last);
                errands.push(Errand::Replies(reply_to, together));
            }
        }
    }
    errands
}

fn offer(duty: &Duty, verdict: &Verdict) -> Option<Offer> {
    let (Verdict::Reply(answer), Some(reply_to)) = (verdict, &duty.reply_to) else { return None };
    let (most, bytes) = (usize::from(duty.replies_per_message).min(MOST_REPLIES), answer.body.bytes.len());
    (most > 1 && bytes <= MOST_REPLY_BYTES).then(|| Offer { reply_to: reply_to.clone(), most, bytes })
}

fn bundles<T>(replies: Vec<(Offer, T)>) -> Vec<(ReplyKey, Vec<T>)> {
    let mut full = Vec::new();
    let mut filling: HashMap<ReplyKey, Open<T>> = HashMap::new();
    for (Offer { reply_to, most, bytes }, reply) in replies {
        match filling.entry(reply_to) {
            Entry::Vacant(none) => drop(none.insert(Open { members: vec![reply], most, bytes })),
            Entry::Occupied(mut open) => {
                let bundle = open.get_mut();
                if bundle.members.len() >= bundle.most.min(most) || bundle.bytes + bytes > MOST_BYTES {
                    let before = std::mem::replace(bundle, Open { members: vec![reply], most, bytes });
                    full.push((open.key().clone(), before.members));
                } else {
                    bundle.members.push(reply);
                    (bundle.most, bundle.bytes) = (bundle.most.min(most), bundle.bytes + bytes);
                }
            }
        }
    }
    full.extend(filling.into_iter().map(|(reply_to, open)| (reply_to, open.members)));
    full
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every reply leaves once and to its requester, and no bundle is larger than one of its requests allows.
        #[test]
        fn bundles_keep_to_every_limit(
            replies in prop::collection::vec((0usize..3, 2usize..9, 0usize..=MOST_REPLY_BYTES), 0..100),
        ) {
            let keys = ["ann", "bob", "eve"].map(|user| ReplyKey::random(user).unwrap());
            let offers = replies.iter().enumerate().map(|(number, &(key, most, bytes))| {
                (Offer { reply_to: keys[key].clone(), most, bytes }, number)
            });
            let made = bundles(offers.collect());
            let mut left: Vec<usize> = made.iter().flat_map(|(_, members)| members).copied().collect();
            left.sort_unstable();
            prop_assert_eq!(left, (0..replies.len()).collect::<Vec<_>>());
            for (reply_to, members) in &made {
                let of = |&number: &usize| replies[number];
                prop_assert!(members.iter().map(of).all(|(key, most, _)| keys[key] == *reply_to && members.len() <= most));
                prop_assert!(members.iter().map(of).map(|(_, _, bytes)| bytes).sum::<usize>() <= MOST_BYTES);
            }
        }
    }
}
