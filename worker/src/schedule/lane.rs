//! A lane: the requests of one tier that wait in this worker for one model version.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// What the scheduler must know of a request. Implemented by `Job`, and by plain structs in property tests.
pub trait Waiting {
    /// Requests of equal keys may share a batch.
    type Key: Clone + Eq + Hash + std::fmt::Debug;

    /// Its key.
    fn key(&self) -> &Self::Key;
    /// Rows it adds to a batch.
    fn rows(&self) -> u32;
    /// When it came.
    fn arrived(&self) -> Instant;
    /// When nobody waits for it any more.
    fn deadline(&self) -> Option<Instant>;
    /// Whether it goes before the normal ones of its tier.
    fn is_urgent(&self) -> bool;
}

/// First in, first out per key, urgent requests first; keys in the order of their oldest request.
#[derive(Debug)]
pub struct Lane<W: Waiting> {
    by_key: HashMap<W::Key, VecDeque<(u64, W)>>,
    next_sequence: u64,
    length: usize,
}

impl<W: Waiting> Default for Lane<W> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), next_sequence: 0, length: 0 }
    }
}

impl<W: Waiting> Lane<W> {
    /// Appends a request; an urgent one goes behind the urgent ones that already wait.
    pub fn push(&mut self, waiting: W) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.length += 1;
        let queue = self.by_key.entry(waiting.key().clone()).or_default();
        if waiting.is_urgent() {
            let position = queue.partition_point(|(_, other)| other.is_urgent());
            queue.insert(position, (sequence, waiting));
        } else {
            queue.push_back((sequence, waiting));
        }
    }

    /// The request whose turn it is: urgent before normal, then the oldest, over all keys.
    pub fn front(&self) -> Option<&W> {
        self.by_key
            .values()
            .filter_map(VecDeque::front)
            .min_by_key(|(sequence, waiting)| (!waiting.is_urgent(), *sequence))
            .map(|(_, waiting)| waiting)
    }

    /// The next request with this key.
    pub fn front_of(&self, key: &W::Key) -> Option<&W> {
        self.by_key.get(key)?.front().map(|(_, waiting)| waiting)
    }

    /// Takes the next request with this key.
    pub fn pop_of(&mut self, key: &W::Key) -> Option<W> {
        let queue = self.by_key.get_mut(key)?;
        let (_, waiting) = queue.pop_front()?;
        if queue.is_empty() {
            self.by_key.remove(key);
        }
        self.length -= 1;
        Some(waiting)
    }

    /// Rows waiting with this key, counted up to `enough`.
    pub fn rows_of(&self, key: &W::Key, enough: u32) -> u32 {
        let mut rows = 0u32;
        for (_, waiting) in self.by_key.get(key).into_iter().flatten() {
            rows = rows.saturating_add(waiting.rows());
            if rows >= enough {
                break;
            }
        }
        rows
    }

    /// The earliest deadline among the next `enough` requests with this key.
    pub fn deadline_of(&self, key: &W::Key, enough: u32) -> Option<Instant> {
        let waiting = self.by_key.get(key).into_iter().flatten().take(enough as usize);
        waiting.filter_map(|(_, waiting)| waiting.deadline()).min()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Requests waiting.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Takes everything, in no particular order.
    pub fn drain(&mut self) -> impl Iterator<Item = W> {
        self.length = 0;
        std::mem::take(&mut self.by_key).into_values().flatten().map(|(_, waiting)| waiting)
    }
}
