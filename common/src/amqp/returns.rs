//! Which confirmed messages were returned. Plain data.
//!
//! The broker returns an unroutable message before it confirms it. The client library keeps returns in a queue and hands
//! one to whichever confirm comes next; a cumulative confirm it resolves in no particular order. So a confirm may carry
//! the return of a message that resolves later, or even of one that resolved before. What it tells for certain: a
//! confirm that carries none found the queue empty, hence every message resolved so far whose return has not been
//! seen was not returned.

use std::collections::HashSet;

/// The confirms of one channel, in the order they resolved. `T` is the one who waits.
#[derive(Debug)]
pub(super) struct Returns<T> {
    /// Returned, and not yet told.
    returned: HashSet<String>,
    /// Resolved with somebody else's return, so that their own may still be in the queue.
    undecided: Vec<(Option<String>, T)>,
}

impl<T> Default for Returns<T> {
    fn default() -> Self {
        Self { returned: HashSet::new(), undecided: Vec::new() }
    }
}

impl<T> Returns<T> {
    /// Takes a confirm that carried the return of the message `carried`, if any. Calls `tell` with everybody of whom it
    /// is certain now whether the message was returned.
    pub(super) fn confirmed(
        &mut self,
        id: Option<String>,
        carried: Option<&str>,
        waiting: T,
        tell: &mut dyn FnMut(T, bool),
    ) {
        self.seen(carried);
        if carried.is_none() && self.undecided.is_empty() && self.returned.is_empty() {
            return tell(waiting, false);
        }
        self.undecided.push((id, waiting));
        if carried.is_none() {
            self.decide(tell);
        }
    }

    /// Takes a refusal, whose own message was not returned but which may carry another's return.
    pub(super) fn refused(&mut self, carried: Option<&str>, tell: &mut dyn FnMut(T, bool)) {
        self.seen(carried);
        if carried.is_none() {
            self.decide(tell);
        }
    }

    /// The queue of returns is empty: because a confirm carried none, or because no confirm is outstanding.
    pub(super) fn decide(&mut self, tell: &mut dyn FnMut(T, bool)) {
        for (id, waiting) in self.undecided.drain(..) {
            let is_returned = id.is_some_and(|id| self.returned.remove(&id));
            tell(waiting, is_returned);
        }
    }

    fn seen(&mut self, carried: Option<&str>) {
        if let Some(id) = carried {
            self.returned.insert(id.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model of the client library: whatever is returned, however confirms are gathered, and in whatever order
        /// a gathered one resolves, everybody is told once, and the truth.
        #[test]
        fn everybody_is_told_the_truth_once(
            returned in prop::collection::vec(any::<bool>(), 1..60),
            gathered in prop::collection::vec(1usize..8, 60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let mut queue: VecDeque<usize> = VecDeque::new();
            let mut returns = Returns::default();
            let mut told = BTreeMap::new();
            let mut tell = |message: usize, is_returned| {
                assert_eq!(told.insert(message, is_returned), None, "told twice");
            };
            let (mut next, mut step) = (0, 0);
            while next < returned.len() {
                let end = returned.len().min(next + gathered[step % gathered.len()]);
                let mut resolving: Vec<usize> = (next..end).collect();
                queue.extend(resolving.iter().filter(|&&message| returned[message]));
                while !resolving.is_empty() {
                    let message = resolving.remove(order[step % order.len()].index(resolving.len()));
                    step += 1;
                    let carried = queue.pop_front().map(|message| message.to_string());
                    returns.confirmed(Some(message.to_string()), carried.as_deref(), message, &mut tell);
                }
                next = end;
            }
            returns.decide(&mut tell);
            prop_assert_eq!(told.len(), returned.len());
            for (message, is_returned) in told {
                prop_assert_eq!(is_returned, returned[message], "message {}", message);
            }
            prop_assert!(returns.returned.is_empty());
        }
    }
}
