//! Requests that are not to run, by whose they are and by id, for as long as there is room for them: those cancelled, by tenant, and those
//! answered that could not be acknowledged, by reply key.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests remembered, at most. A client that cancels more than so many makes the oldest run.
pub const REMEMBERED: usize = 100_000;
/// The longest id that is remembered; ids of our clients have 36 bytes.
const MAX_ID_BYTES: usize = 256;

/// Whose request, and which.
type Key = (Arc<str>, Box<str>);

/// A set of requests.
#[derive(Debug, Default)]
pub struct Remembered {
    known: Mutex<Known>,
    /// As many as are known, for a look without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashSet<Key>,
    /// Oldest first.
    order: VecDeque<Key>,
}

impl Remembered {
    /// Remembers somebody's requests. It does nothing to others'.
    pub fn add(&self, whose: &Arc<str>, ids: impl IntoIterator<Item = String>) {
        let mut known = self.lock();
        for id in ids.into_iter().filter(|id| id.len() <= MAX_ID_BYTES) {
            let key = (Arc::clone(whose), id.into_boxed_str());
            if known.keys.insert(key.clone()) {
                known.order.push_back(key);
            }
        }
        while known.order.len() > REMEMBERED
            && let Some(oldest) = known.order.pop_front()
        {
            known.keys.remove(&oldest);
        }
        self.count.store(known.order.len(), Ordering::Relaxed);
    }

    /// Whether a request is among them.
    pub fn contains(&self, whose: &Arc<str>, id: Option<&str>) -> bool {
        // Mostly nothing is.
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        id.is_some_and(|id| self.lock().keys.contains(&(Arc::clone(whose), id.into())))
    }

    /// As [`Self::contains`], and forgets it.
    pub fn take(&self, whose: &Arc<str>, id: Option<&str>) -> bool {
        let (Some(id), true) = (id, self.contains(whose, id)) else { return false };
        let mut known = self.lock();
        let key = (Arc::clone(whose), id.into());
        known.order.retain(|other| *other != key);
        self.count.store(known.order.len(), Ordering::Relaxed);
        known.keys.remove(&key)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic between its two collections leaves one key too many at most.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_are_remembered_and_the_oldest_forgotten() {
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let remembered = Remembered::default();
        assert!(!remembered.contains(&ann, Some("1")));
        remembered.add(&ann, ["1".to_owned(), "1".to_owned(), "x".repeat(MAX_ID_BYTES + 1)]);
        assert!(remembered.contains(&ann, Some("1")));
        assert!(!remembered.contains(&bob, Some("1")) && !remembered.contains(&ann, None));
        assert!(remembered.take(&ann, Some("1")) && !remembered.take(&ann, Some("1")));
        remembered.add(&ann, ["1".to_owned()]);
        remembered.add(&bob, (0..REMEMBERED).map(|number| number.to_string()));
        assert!(!remembered.contains(&ann, Some("1")) && remembered.contains(&bob, Some("0")));
    }
}
