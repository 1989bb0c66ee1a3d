//! When a batch is worth running: size and delay, by Triton's rules and names.

use std::time::Duration;

/// Bounds of a model's batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most rows of a batch, 1 or more.
    pub max_batch_size: u32,
    /// Sizes that need no waiting for more, in any order; may be empty. A batch is of the largest of them that waits.
    pub preferred_batch_sizes: Vec<u32>,
    /// How long an idle instance lets the oldest request wait for company.
    pub max_queue_delay: Duration,
    /// How long a batch may take by what was learned, for a premium request waits for the rest of a running one. `None` is as
    /// long as its size takes.
    pub max_batch_time: Option<Duration>,
}

impl BatchPolicy {
    /// Whether `rows` rows need not wait for more, where a batch of `most` is full.
    pub fn is_enough(&self, rows: u32, most: u32) -> bool {
        rows >= most || self.preferred(rows).is_some()
    }

    /// Rows of a batch, at most, where `rows` wait and `most` are allowed.
    pub fn size(&self, rows: u32, most: u32) -> u32 {
        self.preferred(rows.min(most)).unwrap_or(most)
    }

    /// The largest preferred size that so many rows make up.
    fn preferred(&self, rows: u32) -> Option<u32> {
        self.preferred_batch_sizes.iter().copied().filter(|&size| size <= rows).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_of_the_largest_preferred_size_that_waits() {
        let policy = BatchPolicy {
            max_batch_size: 64,
            preferred_batch_sizes: vec![8, 16],
            max_queue_delay: Duration::ZERO,
            max_batch_time: None,
        };
        assert_eq!([7, 8, 15, 16, 100].map(|rows| policy.size(rows, 64)), [64, 8, 8, 16, 16]);
        assert_eq!(policy.size(100, 12), 8, "its time allows no more than 12");
        assert_eq!(policy.size(100, 4), 4);
        assert_eq!(
            [(7, 64), (8, 64), (7, 7), (6, 7)].map(|(rows, most)| policy.is_enough(rows, most)),
            [false, true, true, false]
        );
    }
}
