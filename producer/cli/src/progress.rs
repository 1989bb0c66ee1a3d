//! How far a run is: a bar on a terminal, a line every few seconds elsewhere.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::tally::{per_second, thousands};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    /// Requests answered, earlier runs included.
    pub(crate) done: u64,
    /// Those of them without a result.
    pub(crate) failed: u64,
    /// Requests sent and not yet answered.
    pub(crate) in_flight: usize,
}

/// Shows a run's progress on standard error.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    started: Instant,
    done_before: u64,
    last_line: Instant,
}

impl Progress {
    /// `total` where it is known; `done_before` were answered before this run.
    pub(crate) fn new(total: Option<u64>, done_before: u64) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| bar(total, done_before));
        Self { bar, total, started: now, done_before, last_line: now }
    }

    /// Shows the standing; cheap enough to be called for every answer.
    pub(crate) fn show(&mut self, standing: Standing) {
        if let Some(bar) = &self.bar {
            bar.set_position(standing.done);
            bar.set_message(format!(
                "{} failed, {} in flight",
                thousands(standing.failed),
                standing.in_flight
            ));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            eprintln!("{}", self.line(standing));
        }
    }

    fn line(&self, standing: Standing) -> String {
        let rate = per_second(standing.done - self.done_before, self.started.elapsed());
        let (total, left) = match self.total {
            Some(total) => (format!("/{}", thousands(total)), eta(total.saturating_sub(standing.done), rate)),
            None => Default::default(),
        };
        format!(
            "{}{total} done, {}/s{left}, {} failed, {} in flight",
            thousands(standing.done),
            thousands(rate),
            thousands(standing.failed),
            standing.in_flight
        )
    }

    /// Says something without tearing the bar.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn eta(left: u64, rate: u64) -> String {
    match left.checked_div(rate) {
        Some(seconds) => format!(", {} left", indicatif::HumanDuration(Duration::from_secs(seconds))),
        None => String::new(),
    }
}

fn bar(total: Option<u64>, done_before: u64) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:30} {human_pos}/{human_len} {rate:>10} ETA {eta:>4} {msg}",
        None => "{spinner} {human_pos} {rate:>10} {msg}",
    };
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        // Nothing to be done about a terminal that does not take it.
        let _ = write!(out, "{:.0}/s", state.per_sec());
    };
    let style = ProgressStyle::with_template(template)
        .expect("the template is valid")
        .with_key("rate", rate)
        .progress_chars("━╸ ");
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10))
        .with_style(style)
        .with_position(done_before);
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_this_runs_rate_only() {
        let mut progress = Progress::new(Some(3_000), 1_000);
        progress.started = Instant::now() - Duration::from_secs(10);
        let line = progress.line(Standing { done: 2_000, failed: 1, in_flight: 7 });
        assert!(line.starts_with("2,000/3,000 done, 100/s, 10 seconds left, 1 failed"), "{line}");
        let unknown = Progress { total: None, ..progress };
        assert!(
            unknown.line(Standing { done: 2_000, ..Standing::default() }).starts_with("2,000 done, 100/s, 0")
        );
    }
}
