//! Which lines have their answer: one bit a line, 125 kB for a million.

/// A growing set of line numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    count: u64,
}

impl Bitmap {
    /// Adds a line; false when it was there.
    pub(super) fn set(&mut self, line: u64) -> bool {
        let (word, bit) = position(line);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    /// Whether the line is in the set.
    pub(super) fn contains(&self, line: u64) -> bool {
        let (word, bit) = position(line);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many lines are in the set.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

fn position(line: u64) -> (usize, u64) {
    (usize::try_from(line / 64).expect("a line's number fits memory"), 1 << (line % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_counts_once() {
        let mut lines = Bitmap::default();
        assert!(!lines.contains(1_000_000));
        for line in [0, 63, 64, 999_999, 0, 64] {
            let was_there = lines.contains(line);
            assert_eq!(lines.set(line), !was_there, "{line}");
            assert!(lines.contains(line));
        }
        assert_eq!(lines.count(), 4);
        assert!(!lines.contains(1) && !lines.contains(65) && !lines.contains(u64::MAX));
        assert!(lines.words.len() * 8 <= 125_000);
    }
}
