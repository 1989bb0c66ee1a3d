//! Intended send times: fixed before the run, whatever the answers do.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Exponential gaps of the mean 1/`per_second` in this time, counted from the start.
pub(crate) fn poisson(per_second: f64, within: Range<Duration>, seed: u64) -> impl Iterator<Item = Duration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut at = within.start.as_secs_f64();
    std::iter::from_fn(move || {
        // By inversion; 1 - u is never 0.
        at -= (1.0 - random.random::<f64>()).ln() / per_second;
        (at < within.end.as_secs_f64()).then(|| Duration::from_secs_f64(at))
    })
}

/// `count` at the start.
pub(super) fn burst(count: usize) -> impl Iterator<Item = Duration> {
    std::iter::repeat_n(Duration::ZERO, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_their_mean_and_vary_as_much() {
        let within = Duration::from_secs(1)..Duration::from_secs(21);
        let times: Vec<f64> = poisson(1000.0, within.clone(), 7).map(|at| at.as_secs_f64() * 1e3).collect();
        assert!(times[0] > 1000.0 && times[times.len() - 1] < 21_000.0);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 0.03 && (deviation - 1.0).abs() < 0.05, "{mean} ± {deviation}");
        let again: Vec<_> = poisson(1000.0, within, 7).collect();
        assert_eq!(again.len(), times.len(), "the same seed gives the same times");
    }
}
