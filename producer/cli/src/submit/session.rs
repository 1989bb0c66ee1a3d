//! A run: lines go out as there is room, answers come in and are written, until all is done or somebody stops it.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use millrace_producer::{Client, Orphan, Receipt};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::input::{Line, Text};
use super::request::{Correlation, Defaults, Prepared, prepare, too_long};
use super::results::Results;
use super::send::{Landed, send};
use super::state::StateFile;
use crate::progress::{Progress, Standing};
use crate::tally::{Latencies, Workers};

/// The reply queue counts as empty when no reply came for this long.
const QUIET: Duration = Duration::from_secs(1);
/// Input text of requests in flight, at most; a longer line goes alone.
const MAX_BYTES: usize = 32 << 20;
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Everything a run works with.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) orphans: mpsc::Receiver<Orphan>,
    pub(super) results: Results,
    pub(super) state: StateFile,
    pub(super) defaults: Defaults,
    /// Requests in flight, at most.
    pub(super) bound: usize,
    pub(super) retries: u32,
    pub(super) line_limit: usize,
    /// Lines that the input has at most.
    pub(super) lines: u64,
    pub(super) stop: CancellationToken,
    pub(super) seen: Seen,
}

/// What this run saw, for the summary.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) latencies: Latencies,
    pub(super) workers: Workers,
    /// Lines answered.
    pub(super) answered: u64,
    /// Replies to lines that had their answer.
    pub(super) late: u64,
}

type Flight = BoxFuture<'static, Landing>;

struct Landing {
    line: u64,
    custom_id: String,
    bytes: usize,
    landed: Option<Landed>,
}

/// What is on its way.
#[derive(Default)]
struct Air {
    flights: FuturesUnordered<Flight>,
    bytes: usize,
    waiting: VecDeque<Line>,
    is_input_over: bool,
    /// Lines whose flights gave up, because of the stop.
    given_up: u64,
}

impl Air {
    /// Whether nothing is left to do.
    fn is_clear(&self) -> bool {
        self.is_input_over && self.waiting.is_empty() && self.flights.is_empty()
    }
}

enum Event {
    Lines(Option<std::io::Result<Vec<Line>>>),
    Landing(Landing),
    Orphan(Orphan),
    Stop,
    Tick,
}

impl Session {
    /// Takes the replies that came while nobody was there for them, until the `missing` are there or none comes any more.
    /// Returns how many lines they answered.
    pub(super) async fn collect(&mut self, missing: u64) -> Result<u64> {
        let mut collected = 0;
        while collected < missing {
            let orphan = tokio::select! {
                orphan = tokio::time::timeout(QUIET, self.orphans.recv()) => orphan,
                () = self.stop.cancelled() => break,
            };
            let Ok(Some(orphan)) = orphan else { break };
            // A failure that may pass is no answer yet: the line is sent again.
            let is_final = orphan.reply.outcome.as_ref().map_or_else(|error| !error.is_retryable(), |_| true);
            collected += u64::from(self.take_orphan(orphan, is_final).await?);
            if self.orphans.is_empty() {
                self.results.write().await?;
            }
        }
        self.results.write().await?;
        Ok(collected)
    }

    /// Sends every line that comes and writes every answer. Returns whether all lines have their answer.
    pub(super) async fn run(
        &mut self,
        mut input: mpsc::Receiver<std::io::Result<Vec<Line>>>,
        progress: &mut Progress,
    ) -> Result<bool> {
        let mut air = Air::default();
        let mut ticks = tokio::time::interval(SHOW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut is_stopping = false;
        let mut failure = None;
        while !(air.is_clear() || (is_stopping && air.flights.is_empty())) {
            let wants_lines = !is_stopping && !air.is_input_over && air.waiting.is_empty();
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled(), if !is_stopping => Event::Stop,
                Some(landing) = air.flights.next() => Event::Landing(landing),
                Some(orphan) = self.orphans.recv() => Event::Orphan(orphan),
                lines = input.recv(), if wants_lines => Event::Lines(lines),
                _ = ticks.tick() => Event::Tick,
            };
            match event {
                Event::Landing(landing) => self.land(landing, &mut air).await?,
                Event::Orphan(orphan) => {
                    // A failure of an older copy says nothing: the newer copy will answer.
                    let is_final = orphan.reply.outcome.is_ok();
                    self.take_orphan(orphan, is_final).await?;
                    self.results.write().await?;
                }
                Event::Lines(Some(Ok(lines))) => air.waiting.extend(lines),
                Event::Lines(Some(Err(error))) => {
                    failure = Some(error);
                    self.stop.cancel();
                }
                Event::Lines(None) => air.is_input_over = true,
                Event::Stop => {
                    is_stopping = true;
                    say_stopping(progress, air.flights.len(), failure.is_some());
                }
                Event::Tick => progress.show(self.standing(&air)),
            }
            // Not `is_stopping`: a landing may have come because of the stop, and must not make room for a new flight.
            if !self.stop.is_cancelled() {
                self.take_off(&mut air).await?;
            }
        }
        self.results.write().await?;
        progress.show(self.standing(&air));
        match failure {
            Some(error) => Err(error).context("cannot read the input; run the same command again to go on"),
            None => Ok(air.is_clear() && air.given_up == 0),
        }
    }

    fn standing(&self, air: &Air) -> Standing {
        Standing {
            done: self.results.done.count(),
            failed: self.results.failed(),
            in_flight: air.flights.len(),
        }
    }

    /// Sends waiting lines while there is room. What cannot be sent is answered at once, and makes room when it is written.
    async fn take_off(&mut self, air: &mut Air) -> Result<()> {
        loop {
            let before = air.waiting.len();
            self.fill(air).await?;
            if air.waiting.is_empty() || air.waiting.len() == before {
                return Ok(());
            }
        }
    }

    async fn fill(&mut self, air: &mut Air) -> Result<()> {
        let mut mark = 0;
        // Answers not yet written take room too: a kill now would make their lines be sent again.
        while air.flights.len() + self.results.gathered() < self.bound
            && (air.bytes < MAX_BYTES || air.flights.is_empty())
            && let Some(line) = air.waiting.pop_front()
        {
            if self.results.done.contains(line.number) {
                continue; // its reply came in the meantime
            }
            let prepared = match &line.text {
                Text::Some(text) => prepare(line.number, text, &self.defaults),
                Text::TooLong(beginning) => Err(too_long(beginning, self.line_limit)),
                Text::Blank => continue,
            };
            match prepared {
                Ok(prepared) => {
                    mark = line.number + 1;
                    air.bytes += bytes(&line);
                    air.flights.push(self.flight(line.number, bytes(&line), prepared));
                }
                Err(invalid) => {
                    self.results.add(&Answer::invalid(line.number, &invalid), None).await?;
                }
            }
        }
        // Before the flights are polled, hence before anything is sent.
        self.state.advance(mark)?;
        self.results.write().await
    }

    fn flight(&self, line: u64, bytes: usize, prepared: Prepared) -> Flight {
        let custom_id = prepared.custom_id.clone();
        let sending = send(self.client.clone(), prepared, self.retries, self.stop.clone());
        Box::pin(async move { Landing { line, custom_id, bytes, landed: sending.await } })
    }

    /// Takes this landing and all others that wait, and writes them together.
    async fn land(&mut self, landing: Landing, air: &mut Air) -> Result<()> {
        let mut next = Some(landing);
        while let Some(Landing { line, custom_id, bytes, landed }) = next {
            air.bytes -= bytes;
            match landed {
                Some(Landed { outcome, receipt, latency }) => {
                    let answer = Answer::new(line, &custom_id, &outcome, Some(latency));
                    self.take(&answer, receipt).await?;
                }
                None => air.given_up += 1,
            }
            next = air.flights.next().now_or_never().flatten();
        }
        self.results.write().await
    }

    /// Takes a reply that no flight waits for. Returns whether it answered its line.
    async fn take_orphan(&mut self, orphan: Orphan, is_final: bool) -> Result<bool> {
        let Orphan { correlation_id, reply, .. } = orphan;
        let correlation = correlation_id.as_deref().and_then(Correlation::read);
        let known = correlation.filter(|known| known.line < self.lines);
        match known {
            Some(known) if self.results.done.contains(known.line) => {
                self.seen.late += 1;
                self.results.duplicate(reply.receipt);
                Ok(false)
            }
            Some(known) if is_final => {
                let answer = Answer::new(known.line, &known.custom_id, &reply.outcome, None);
                self.take(&answer, Some(reply.receipt)).await
            }
            _ => {
                reply.receipt.acknowledge();
                Ok(false)
            }
        }
    }

    async fn take(&mut self, answer: &Answer, receipt: Option<Receipt>) -> Result<bool> {
        let is_new = self.results.add(answer, receipt).await?;
        if !is_new {
            self.seen.late += 1;
            return Ok(false);
        }
        self.seen.answered += 1;
        if let Some(worker) = &answer.worker {
            self.seen.workers.count(worker);
        }
        if let (Some(latency), None) = (answer.latency, answer.failure) {
            self.seen.latencies.record(latency);
        }
        Ok(true)
    }
}

fn bytes(line: &Line) -> usize {
    match &line.text {
        Text::Some(text) | Text::TooLong(text) => text.len(),
        Text::Blank => 0,
    }
}

fn say_stopping(progress: &Progress, in_flight: usize, is_failure: bool) {
    let why = if is_failure { "the input cannot be read" } else { "interrupted" };
    progress.say(&format!(
        "{why}: waiting for the {in_flight} requests in flight; Ctrl-C again ends at once, and loses nothing either"
    ));
}
