//! Counts fates as they come.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::outcome::{Counts, Outcome, Window, histogram, sparse};
use super::{Arrivals, Fate, Spec};

/// Length of a [`Window`].
const WINDOW: Duration = Duration::from_millis(250);

/// Wire times are whole milliseconds.
const CLOCK_STEP: Duration = Duration::from_millis(1);

/// One request's times and end.
pub(super) struct Ended {
    /// When it was meant to be sent.
    pub(super) intended: Instant,
    /// When it was.
    pub(super) sent: Instant,
    pub(super) fate: Fate,
}

/// Everything a client has seen so far.
pub(super) struct Tally {
    /// Of the counted time.
    start: Instant,
    end: Instant,
    is_burst: bool,
    deadline: Duration,
    counts: Counts,
    answers: u64,
    in_time: u64,
    latencies: Histogram<u64>,
    lags: Histogram<u64>,
    in_worker: Histogram<u64>,
    windows: Vec<Histogram<u64>>,
    model: Duration,
    batches: u64,
    last_answer: Instant,
    first_failure: Option<String>,
}

impl Tally {
    pub(super) fn new(spec: &Spec, start: Instant) -> Self {
        let start = start + spec.warm_up;
        Self {
            start,
            end: start + spec.duration,
            is_burst: matches!(spec.arrivals, Arrivals::Burst { .. }),
            deadline: spec.deadline,
            counts: Counts::default(),
            answers: 0,
            in_time: 0,
            latencies: histogram(),
            lags: histogram(),
            in_worker: histogram(),
            windows: Vec::new(),
            model: Duration::ZERO,
            batches: 0,
            last_answer: start,
            first_failure: None,
        }
    }

    /// When nothing more is to be sent.
    pub(super) fn end(&self) -> Instant {
        self.end
    }

    /// A request is meant to be sent at this time; [`Tally::add`] must hear of its end.
    pub(super) fn offer(&mut self, intended: Instant) {
        self.counts.offered += u64::from((self.start..self.end).contains(&intended));
    }

    pub(super) fn add(&mut self, ended: Ended) {
        let now = Instant::now();
        if let Fate::Served { model, batch, .. } = ended.fate
            && (self.is_burst || (self.start..self.end).contains(&now))
        {
            self.answers += 1;
            self.in_time += u64::from(now - ended.intended <= self.deadline);
            self.model += model;
            self.batches += batch;
            self.last_answer = now;
        }
        if !(self.start..self.end).contains(&ended.intended) {
            return;
        }
        if !matches!(ended.fate, Fate::Unsent) {
            self.lags.saturating_record(micros(ended.sent.saturating_duration_since(ended.intended)));
        }
        match ended.fate {
            Fate::Served { in_worker, .. } => {
                self.in_worker.saturating_record(micros(in_worker));
                self.served(ended.intended, now);
            }
            Fate::Refused => self.counts.refused += 1,
            Fate::Expired => {
                self.counts.early_expiries += u64::from(now - ended.sent + CLOCK_STEP < self.deadline);
                self.counts.expired += 1;
            }
            Fate::Unanswered => self.counts.unanswered += 1,
            Fate::Unsent => self.counts.unsent += 1,
            Fate::Failed(reason) => {
                self.counts.failed += 1;
                self.first_failure.get_or_insert(reason);
            }
        }
    }

    fn served(&mut self, intended: Instant, now: Instant) {
        let latency = now - intended;
        self.counts.served += 1;
        self.latencies.saturating_record(micros(latency));
        let window = ((intended - self.start).as_micros() / WINDOW.as_micros()) as usize;
        if self.windows.len() <= window {
            self.windows.resize_with(window + 1, histogram);
        }
        self.windows[window].saturating_record(micros(latency));
    }

    pub(super) fn outcome(&self) -> Outcome {
        let span = if self.is_burst { self.last_answer - self.start } else { self.end - self.start };
        Outcome {
            counts: self.counts,
            answers: self.answers,
            in_time: self.in_time,
            latencies_us: sparse(&self.latencies),
            lags_us: sparse(&self.lags),
            in_worker_us: sparse(&self.in_worker),
            windows: self.windows(),
            model_s: self.model.as_secs_f64(),
            batch: self.batches as f64 / self.answers.max(1) as f64,
            seconds: span.as_secs_f64().max(1e-6),
            first_failure: self.first_failure.clone(),
        }
    }

    fn windows(&self) -> Vec<Window> {
        let numbered = self.windows.iter().enumerate().filter(|(_, histogram)| !histogram.is_empty());
        numbered
            .map(|(number, histogram)| Window {
                at_s: (number as f64 + 0.5) * WINDOW.as_secs_f64(),
                p50_ms: histogram.value_at_quantile(0.5) as f64 / 1e3,
                p99_ms: histogram.value_at_quantile(0.99) as f64 / 1e3,
            })
            .collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
