//! Counts for the end of a run: latencies, and who did the work.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies above this count as this; an hour is the longest that anyone waits for one request.
const MAX_LATENCY: Duration = Duration::from_secs(3_600);
/// Workers counted by name. Names come from replies and must not fill memory.
const MAX_WORKERS: usize = 10_000;

/// Latencies in microseconds, three digits exact, in constant memory.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let most = u64::try_from(MAX_LATENCY.as_micros()).expect("an hour of microseconds fits");
        Self(Histogram::new_with_max(most, 3).expect("the bounds are valid"))
    }
}

impl Latencies {
    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many were counted.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `quantile` of all stay below.
    pub(crate) fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(quantile))
    }
}

/// Answers by worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workers(BTreeMap<String, u64>);

impl Workers {
    /// Counts one answer.
    pub(crate) fn count(&mut self, worker: &str) {
        if let Some(count) = self.0.get_mut(worker) {
            *count += 1;
        } else if self.0.len() < MAX_WORKERS {
            self.0.insert(worker.to_owned(), 1);
        }
    }

    /// Names and counts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &count)| (name.as_str(), count))
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration as `12.3 ms`.
pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// How many a second.
pub(crate) fn per_second(count: u64, took: Duration) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people; saturating, and never negative"
    )]
    let rate = (count as f64 / took.as_secs_f64().max(1e-3)).round() as u64;
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(milliseconds(Duration::from_micros(1250)), "1.2 ms");
        assert_eq!(per_second(500, Duration::from_millis(250)), 2000);
    }

    #[test]
    fn latencies_beyond_the_bound_are_counted() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_secs(86_400));
        latencies.record(Duration::from_millis(10));
        assert_eq!(latencies.count(), 2);
        assert!(latencies.quantile(0.5) <= Duration::from_micros(10_010));
    }
}
