//! Requesters whose reply queue was full or gone a moment ago. `now` is a parameter.
//!
//! The first reply to such a requester is tried for a while; the others, which may be hundreds, must not each hold their
//! lane's budget and their place in the prefetch window as long. What waits for one that is gone is not run.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a finding counts.
const COUNTS_FOR: Duration = Duration::from_secs(5);
/// Most requesters remembered; beyond that each reply is tried as if it were the first.
const MOST: usize = 10_000;

/// What is wrong with a requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its reply queue stayed full.
    Stuck,
    /// It has no reply queue.
    Gone,
}

/// Requesters in trouble, by reply key.
#[derive(Debug, Default)]
pub struct Readers {
    found: Mutex<HashMap<String, (Trouble, Instant)>>,
    /// Bytes of the answers that were refused and are tried again, by user.
    refused: Mutex<HashMap<String, usize>>,
}

/// An answer that was refused and is tried again, until it is dropped.
#[derive(Debug)]
pub struct Refused<'a> {
    readers: &'a Readers,
    user: &'a str,
    bytes: usize,
}

impl Refused<'_> {
    /// Bytes of the user's other answers that are tried again.
    pub fn others(&self) -> usize {
        let all = self.readers.refused().get(self.user).copied();
        all.unwrap_or(0).saturating_sub(self.bytes)
    }
}

impl Drop for Refused<'_> {
    fn drop(&mut self) {
        let mut refused = self.readers.refused();
        if let Some(bytes) = refused.get_mut(self.user) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                refused.remove(self.user);
            }
        }
    }
}

impl Readers {
    /// Notes a finding.
    pub fn note(&self, key: &str, trouble: Trouble, now: Instant) {
        let mut found = self.found();
        if found.len() >= MOST {
            found.retain(|_, (_, at)| now.saturating_duration_since(*at) < COUNTS_FOR);
        }
        if found.len() < MOST {
            found.insert(key.to_owned(), (trouble, now));
        }
    }

    /// A reply reached the requester.
    pub fn recovered(&self, key: &str) {
        let mut found = self.found();
        if !found.is_empty() {
            found.remove(key);
        }
    }

    /// What was found lately.
    pub fn trouble(&self, key: &str, now: Instant) -> Option<Trouble> {
        let (trouble, at) = *self.found().get(key)?;
        (now.saturating_duration_since(at) < COUNTS_FOR).then_some(trouble)
    }

    /// Counts an answer that was refused, and is tried again as long as it is held.
    pub fn refuses<'a>(&'a self, user: &'a str, bytes: usize) -> Refused<'a> {
        *self.refused().entry(user.to_owned()).or_default() += bytes;
        Refused { readers: self, user, bytes }
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // As below.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> MutexGuard<'_, HashMap<String, (Trouble, Instant)>> {
        // Single map operations; a panic cannot leave it half changed.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_counts_for_a_while_or_until_a_reply_arrives() {
        let readers = Readers::default();
        let now = Instant::now();
        readers.note("a", Trouble::Stuck, now);
        readers.note("b", Trouble::Gone, now);
        assert_eq!(readers.trouble("a", now), Some(Trouble::Stuck));
        assert_eq!(readers.trouble("b", now + COUNTS_FOR), None);
        readers.recovered("a");
        assert_eq!(readers.trouble("a", now), None);
    }

    #[test]
    fn what_a_user_refuses_counts_while_it_is_tried_again() {
        let readers = Readers::default();
        let first = readers.refuses("a", 10);
        assert_eq!(first.others(), 0);
        let (second, another) = (readers.refuses("a", 3), readers.refuses("b", 5));
        assert_eq!([first.others(), second.others(), another.others()], [3, 10, 0]);
        drop(first);
        assert_eq!(second.others(), 0);
        drop((second, another));
        assert!(readers.refused().is_empty());
    }

    #[test]
    fn made_up_keys_do_not_fill_memory() {
        let readers = Readers::default();
        let now = Instant::now();
        for key in 0..2 * MOST {
            readers.note(&key.to_string(), Trouble::Gone, now);
        }
        assert_eq!(readers.found().len(), MOST);
        readers.note("later", Trouble::Gone, now + COUNTS_FOR);
        assert_eq!(readers.found().len(), 1);
    }
}
