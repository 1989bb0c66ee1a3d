//! A line: the waiting requests of one tenant.

use std::collections::{HashMap, VecDeque};

use super::Waiting;

/// First in, first out per key, urgent requests first; keys in the order of their oldest request.
#[derive(Debug)]
pub(super) struct Line<W: Waiting> {
    by_key: HashMap<W::Key, VecDeque<(u64, W)>>,
}

impl<W: Waiting> Default for Line<W> {
    fn default() -> Self {
        Self { by_key: HashMap::new() }
    }
}

impl<W: Waiting> Line<W> {
    /// Appends a request; an urgent one goes behind the urgent ones that already wait.
    pub(super) fn push(&mut self, sequence: u64, waiting: W) {
        let queue = self.by_key.entry(waiting.key().clone()).or_default();
        if waiting.is_urgent() {
            let position = queue.partition_point(|(_, other)| other.is_urgent());
            queue.insert(position, (sequence, waiting));
        } else {
            queue.push_back((sequence, waiting));
        }
    }

    /// Urgent before normal, then the oldest, over all keys.
    pub(super) fn front(&self) -> Option<&W> {
        self.by_key
            .values()
            .filter_map(VecDeque::front)
            .min_by_key(|(sequence, waiting)| (!waiting.is_urgent(), *sequence))
            .map(|(_, waiting)| waiting)
    }

    /// The next request with this key.
    pub(super) fn front_of(&self, key: &W::Key) -> Option<&W> {
        self.all_of(key).next()
    }

    /// The requests with this key, in order.
    pub(super) fn all_of(&self, key: &W::Key) -> impl Iterator<Item = &W> {
        self.by_key.get(key).into_iter().flatten().map(|(_, waiting)| waiting)
    }

    /// Everything, in no particular order.
    pub(super) fn all(&self) -> impl Iterator<Item = &W> {
        self.by_key.values().flatten().map(|(_, waiting)| waiting)
    }

    /// Takes the next request with this key.
    pub(super) fn pop_of(&mut self, key: &W::Key) -> Option<W> {
        let queue = self.by_key.get_mut(key)?;
        let (_, waiting) = queue.pop_front()?;
        if queue.is_empty() {
            self.by_key.remove(key);
        }
        Some(waiting)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Everything, in no particular order.
    pub(super) fn into_all(self) -> impl Iterator<Item = W> {
        self.by_key.into_values().flatten().map(|(_, waiting)| waiting)
    }
}
