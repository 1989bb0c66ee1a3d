//! Several runs' values as a median and how far they lie apart.

/// Median, least and most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// Of one value each run; the lower of two medians.
    pub(crate) fn of<R>(runs: &[R], value: impl Fn(&R) -> f64) -> Self {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self { median: at(last / 2), least: at(0), most: at(last) }
    }

    /// A ratio, which is what counts.
    pub(crate) fn ratio(&self) -> String {
        format!("**{:.2}** ({:.2}–{:.2})", self.median, self.least, self.most)
    }

    /// With so many decimals.
    pub(crate) fn text(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}–{:.decimals$})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_before_the_spread() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0], |value| *value).text(0), "2 (1–3)");
        assert_eq!(Spread::of(&[0.5], |value| *value).ratio(), "**0.50** (0.50–0.50)");
    }
}
