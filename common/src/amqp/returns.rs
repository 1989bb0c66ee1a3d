//! Which confirmed messages were returned. Plain data.
//!
//! The broker returns an unroutable message before it confirms it. The client library keeps returns in a queue and hands
//! one to whichever confirm resolves next; a cumulative confirm it resolves in no particular order. So a confirm may carry
//! the return of a message that resolves later, or of one that resolved before.
//!
//! Two things are certain. A confirm that carries none found the queue empty when it resolved, so that the return of its own
//! message, if there was one, had been handed to a confirm that resolved before. And when one that has resolved is seen, all
//! that resolved before it can be seen too: hence answers are taken in gatherings of all that are there.

use std::collections::HashSet;

/// An answer from the broker.
#[derive(Debug)]
pub(super) struct Gathered<T> {
    /// The message that it answers.
    pub(super) id: Option<String>,
    /// The returned message that came with it.
    pub(super) carried: Option<String>,
    /// Who waits to hear whether the message was returned; nobody where it was refused.
    pub(super) waiting: Option<T>,
}

/// The answers of one channel.
#[derive(Debug)]
pub(super) struct Returns<T> {
    /// Returned, and not yet told.
    returned: HashSet<String>,
    /// Confirmed with somebody else's return, so that their own may still be in the queue.
    undecided: Vec<(Option<String>, T)>,
}

impl<T> Default for Returns<T> {
    fn default() -> Self {
        Self { returned: HashSet::new(), undecided: Vec::new() }
    }
}

impl<T> Returns<T> {
    /// Takes all answers that are there, in any order, and leaves `gathered` empty. `is_all` says that no other is
    /// outstanding. Calls `tell` with everybody of whom it is certain now whether their message was returned.
    pub(super) fn take(
        &mut self,
        gathered: &mut Vec<Gathered<T>>,
        is_all: bool,
        tell: &mut dyn FnMut(T, bool),
    ) {
        // By the time of such an answer, which came later than those of earlier gatherings.
        let was_queue_empty = gathered.iter().any(|answer| answer.carried.is_none());
        self.returned.extend(gathered.iter().filter_map(|answer| answer.carried.clone()));
        if was_queue_empty {
            self.decide(tell);
        }
        for Gathered { id, carried, waiting } in gathered.drain(..) {
            let Some(waiting) = waiting else { continue };
            let is_returned = self.is_returned(id.as_deref());
            if is_returned || carried.is_none() {
                tell(waiting, is_returned);
            } else {
                self.undecided.push((id, waiting));
            }
        }
        if is_all {
            self.decide(tell);
        }
    }

    fn decide(&mut self, tell: &mut dyn FnMut(T, bool)) {
        for (id, waiting) in std::mem::take(&mut self.undecided) {
            let is_returned = self.is_returned(id.as_deref());
            tell(waiting, is_returned);
        }
    }

    /// Told once: the same id may be published again.
    fn is_returned(&mut self, id: Option<&str>) -> bool {
        !self.returned.is_empty() && id.is_some_and(|id| self.returned.remove(id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model of the client library: whatever is returned, however confirms are gathered by the broker, in whatever
        /// order one that is gathered resolves, and whenever and in whatever order what has resolved is seen: everybody is
        /// told once, and the truth.
        #[test]
        fn everybody_is_told_the_truth_once(
            returned in prop::collection::vec(any::<bool>(), 1..60),
            refused in prop::collection::vec(prop::bool::weighted(0.2), 60),
            together in prop::collection::vec(1usize..8, 60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 60),
            seen_after in prop::collection::vec(1usize..6, 60),
            shuffle in any::<bool>(),
        ) {
            let is_refused = |message: usize| refused[message] && !returned[message];
            let mut queue: VecDeque<usize> = VecDeque::new();
            let mut resolved = Vec::new();
            let (mut next, mut step) = (0, 0);
            while next < returned.len() {
                let end = returned.len().min(next + together[step % together.len()]);
                let mut resolving: Vec<usize> = (next..end).collect();
                queue.extend(resolving.iter().filter(|&&message| returned[message]));
                while !resolving.is_empty() {
                    let message = resolving.remove(order[step % order.len()].index(resolving.len()));
                    step += 1;
                    resolved.push((message, queue.pop_front()));
                }
                next = end;
            }
            let mut returns = Returns::default();
            let mut told = BTreeMap::new();
            let mut at = 0;
            for count in seen_after.iter().cycle() {
                let end = resolved.len().min(at + count);
                let mut gathered: Vec<Gathered<usize>> = resolved[at..end]
                    .iter()
                    .map(|&(message, carried)| Gathered {
                        id: Some(message.to_string()),
                        carried: carried.map(|message| message.to_string()),
                        waiting: (!is_refused(message)).then_some(message),
                    })
                    .collect();
                if shuffle {
                    gathered.reverse();
                }
                at = end;
                returns.take(&mut gathered, at == resolved.len(), &mut |message, is_returned| {
                    assert_eq!(told.insert(message, is_returned), None, "told twice");
                });
                if at == resolved.len() {
                    break;
                }
            }
            for (message, &is_returned) in returned.iter().enumerate() {
                let expected = (!is_refused(message)).then_some(is_returned);
                prop_assert_eq!(told.get(&message).copied(), expected, "message {}", message);
            }
            prop_assert!(returns.returned.is_empty());
        }
    }
}
