//! How long replies, and copies for other queues, take to be confirmed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The time that confirms took, since somebody last looked.
#[derive(Debug, Default)]
pub struct Confirms {
    micros: AtomicU64,
    count: AtomicU64,
}

impl Confirms {
    /// One came after so long.
    pub fn add(&self, took: Duration) {
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The mean of those since the last call, microseconds; `None` where there were none.
    pub fn take_mean_us(&self) -> Option<u64> {
        // One that comes between the two is counted by half: nothing to a mean.
        let (count, micros) = (self.count.swap(0, Ordering::Relaxed), self.micros.swap(0, Ordering::Relaxed));
        micros.checked_div(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_has_the_mean_since_the_last_one() {
        let confirms = Confirms::default();
        assert_eq!(confirms.take_mean_us(), None);
        for millis in [10, 20] {
            confirms.add(Duration::from_millis(millis));
        }
        assert_eq!((confirms.take_mean_us(), confirms.take_mean_us()), (Some(15_000), None));
    }
}
