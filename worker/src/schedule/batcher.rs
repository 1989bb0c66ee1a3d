//! When a batch is worth running: size and delay, by Triton's rules and names.

use std::time::{Duration, Instant};

/// Bounds of a model's batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most rows of a batch, 1 or more.
    pub max_batch_size: u32,
    /// Sizes that need no waiting for more, ascending; may be empty.
    pub preferred_batch_sizes: Vec<u32>,
    /// How long an idle instance lets the oldest request wait for company.
    pub max_queue_delay: Duration,
    /// How long a batch may take by what was learned, for a premium request waits for the rest of a running one. `None` is as
    /// long as its size takes.
    pub max_batch_time: Option<Duration>,
}

impl BatchPolicy {
    /// Whether `rows` rows, the oldest of which arrived at `oldest`, should run now; if not, when to ask again. A batch of
    /// `most` rows is full.
    ///
    /// # Errors
    /// The instant at which the oldest request's delay is spent.
    pub fn is_ready(&self, rows: u32, most: u32, oldest: Instant, now: Instant) -> Result<(), Instant> {
        let is_full = rows >= most;
        let is_preferred = self.preferred_batch_sizes.iter().any(|&size| rows >= size);
        let due = oldest + self.max_queue_delay;
        if is_full || is_preferred || now >= due { Ok(()) } else { Err(due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_runs_when_full_preferred_or_late() {
        let policy = BatchPolicy {
            max_batch_size: 8,
            preferred_batch_sizes: vec![4],
            max_queue_delay: Duration::from_millis(5),
            max_batch_time: None,
        };
        let start = Instant::now();
        let due = start + Duration::from_millis(5);
        assert_eq!(policy.is_ready(3, 8, start, start), Err(due));
        assert_eq!(policy.is_ready(3, 8, start, due), Ok(()));
        assert_eq!(policy.is_ready(4, 8, start, start), Ok(()));
        assert_eq!(policy.is_ready(8, 8, start, start), Ok(()));
        assert_eq!(policy.is_ready(3, 3, start, start), Ok(()));
    }
}
