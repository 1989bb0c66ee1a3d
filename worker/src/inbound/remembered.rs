//! Requests that are not to run, by whose they are and by id, for as long as there is room for them: those cancelled, by tenant, and those
//! answered that could not be acknowledged, by reply key.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests remembered, at most. A client that cancels more than so many makes the oldest run.
pub const REMEMBERED: usize = 100_000;

/// What stands for a request: 128 bits of whose it is and which, under keys that nobody knows. Ids of 36 bytes took four times as much
/// memory, longer ones more, and callers choose them.
type Mark = u128;

/// A set of requests.
#[derive(Debug, Default)]
pub struct Remembered {
    known: Mutex<Known>,
    /// As many as are known, for a look without the lock.
    count: AtomicUsize,
    keys: [RandomState; 2],
}

#[derive(Debug, Default)]
struct Known {
    marks: HashSet<Mark>,
    /// Oldest first.
    order: VecDeque<Mark>,
}

impl Remembered {
    /// Remembers somebody's requests. It does nothing to others'.
    pub fn add(&self, whose: &str, ids: impl IntoIterator<Item = String>) {
        let mut known = self.lock();
        for id in ids {
            let mark = self.mark(whose, &id);
            if known.marks.insert(mark) {
                known.order.push_back(mark);
            }
        }
        while known.order.len() > REMEMBERED
            && let Some(oldest) = known.order.pop_front()
        {
            known.marks.remove(&oldest);
        }
        self.count.store(known.order.len(), Ordering::Relaxed);
    }

    /// Whether a request is among them.
    pub fn contains(&self, whose: &str, id: Option<&str>) -> bool {
        // Mostly nothing is.
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        id.map(|id| self.mark(whose, id)).is_some_and(|mark| self.lock().marks.contains(&mark))
    }

    /// As [`Self::contains`], and forgets it.
    pub fn take(&self, whose: &str, id: Option<&str>) -> bool {
        let (Some(id), true) = (id, self.contains(whose, id)) else { return false };
        let mark = self.mark(whose, id);
        let mut known = self.lock();
        known.order.retain(|other| *other != mark);
        self.count.store(known.order.len(), Ordering::Relaxed);
        known.marks.remove(&mark)
    }

    fn mark(&self, whose: &str, id: &str) -> Mark {
        let [high, low] = self.keys.each_ref().map(|key| Mark::from(key.hash_one((whose, id))));
        high << 64 | low
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic between its two collections leaves one mark too many at most.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_are_remembered_and_the_oldest_forgotten() {
        let remembered = Remembered::default();
        assert!(!remembered.contains("ann", Some("1")));
        remembered.add("ann", ["1".to_owned(), "1".to_owned()]);
        assert!(remembered.contains("ann", Some("1")));
        assert!(!remembered.contains("bob", Some("1")) && !remembered.contains("ann", None));
        assert!(remembered.take("ann", Some("1")) && !remembered.take("ann", Some("1")));
        let long = "x".repeat(10_000);
        remembered.add("ann", [long.clone()]);
        assert!(remembered.contains("ann", Some(&long)), "however long its id");
        remembered.add("ann", ["1".to_owned()]);
        remembered.add("bob", (0..REMEMBERED).map(|number| number.to_string()));
        assert!(!remembered.contains("ann", Some("1")) && remembered.contains("bob", Some("0")));
    }
}
