//! What became of one client's requests.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency told apart: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Requests by fate; `offered` counts them all, before anything is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) offered: u64,
    pub(crate) served: u64,
    pub(crate) refused: u64,
    pub(crate) expired: u64,
    pub(crate) failed: u64,
    pub(crate) unanswered: u64,
    pub(crate) unsent: u64,
    /// Of the expired: told so before their deadline.
    pub(crate) early_expiries: u64,
}

impl Counts {
    /// Offered requests of which nothing is known.
    pub(crate) fn unaccounted(&self) -> i64 {
        let known = self.served + self.refused + self.expired + self.failed + self.unanswered + self.unsent;
        self.offered.cast_signed() - known.cast_signed()
    }
}

/// A quarter of a second, by intended send time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Its middle, seconds from the start.
    pub(crate) at_s: f64,
    /// Of the served: median and 99th percentile, milliseconds.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// What a client saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Of requests meant for the counted time.
    pub(crate) counts: Counts,
    /// Results that came in the counted time, whenever they were asked for; the rate counts these.
    pub(crate) answers: u64,
    /// Those of them in time for their deadline, counted from the intended send time.
    pub(crate) in_time: u64,
    /// Microseconds from the intended send time to the result, and how often.
    pub(crate) latencies_us: Vec<(u64, u64)>,
    /// Microseconds from the intended to the actual send time, and how often.
    pub(crate) lags_us: Vec<(u64, u64)>,
    /// Microseconds of the served from the worker's intake to the model's outputs, and how often.
    pub(crate) in_worker_us: Vec<(u64, u64)>,
    pub(crate) windows: Vec<Window>,
    /// The model's time for results that came in the counted time.
    pub(crate) model_s: f64,
    /// Rows of a batch, as the mean request sees it.
    pub(crate) batch: f64,
    /// Length of the counted time.
    pub(crate) seconds: f64,
    pub(crate) first_failure: Option<String>,
}

impl Outcome {
    /// Results a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.seconds
    }

    /// A quantile of the latency in milliseconds.
    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.latencies_us, quantile)
    }

    /// A quantile of the time in the worker in milliseconds.
    pub(crate) fn in_worker_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.in_worker_us, quantile)
    }

    /// A quantile of the generator's lag in milliseconds.
    pub(crate) fn lag_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.lags_us, quantile)
    }

    /// Refuses outcomes with failures that no scenario provokes.
    pub(crate) fn checked(self) -> anyhow::Result<Self> {
        match &self.first_failure {
            Some(failure) => {
                anyhow::bail!("{} of {} requests failed: {failure}", self.counts.failed, self.counts.offered)
            }
            None => Ok(self),
        }
    }
}

/// A histogram from a microsecond to an hour, three digits exact.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are valid")
}

/// A histogram's values and how often each came.
pub(super) fn sparse(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

fn quantile_ms(values: &[(u64, u64)], quantile: f64) -> f64 {
    merged([values]).value_at_quantile(quantile) as f64 / 1e3
}

/// One histogram of several clients' values.
fn merged<'a>(all: impl IntoIterator<Item = &'a [(u64, u64)]>) -> Histogram<u64> {
    let mut histogram = histogram();
    for &(value, count) in all.into_iter().flatten() {
        histogram.saturating_record_n(value, count);
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_survive_their_way_as_pairs() {
        let mut one = histogram();
        (1..=1000).for_each(|value| one.saturating_record(value * 10));
        let again = merged([sparse(&one).as_slice()]);
        for quantile in [0.0, 0.5, 0.99, 0.999, 1.0] {
            assert_eq!(one.value_at_quantile(quantile), again.value_at_quantile(quantile));
        }
        assert_eq!(again.len(), 1000);
    }
}
