//! A thread that owns a back end: collects a batch, runs it, splits it into answers.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_common::amqp::message::Timing;
use millrace_common::protocol::status::Code;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::assemble::{answers_of, stacked};
use super::backend::{Backend, BackendError};
use super::bisect::{self, End};
use crate::catalogue::{Catalogue, ServedVersion};
use crate::guard::breaker::Calls;
use crate::guard::ladder::{Instead, Reason, descend, refusal};
use crate::guard::watchdog::{Found, Watch};
use crate::inbound::cancelled::Cancelled;
use crate::job::{Answer, Job, Settlement, Verdict, micros};
use crate::live::Live;
use crate::outbound::readers::{Readers, Trouble};
use crate::schedule::batch::BatchError;
use crate::schedule::pickup::Collected;
use crate::schedule::tier_set::TierSet;

/// The least that a part of a batch that was stopped may take.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);

/// A thread with its back end.
#[derive(Debug)]
pub struct Instance {
    served: Arc<ServedVersion>,
    thread: JoinHandle<()>,
    watch: Arc<Watch>,
}

/// Why an instance cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its thread has ended although nobody stopped it: it panicked, and its requests with it.
    Crashed,
    /// Its back end neither answers nor can be stopped.
    Hung,
}

impl Instance {
    /// Whose instance it is.
    pub fn served(&self) -> &Arc<ServedVersion> {
        &self.served
    }

    /// Whether its thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Once its thread has ended: whether that was not because its version is served no more.
    pub fn has_crashed(self) -> bool {
        self.thread.join().is_err() || !self.served.pickup.is_closed()
    }

    /// Stops a run that takes too long; returns whether it can neither end nor be stopped.
    pub fn is_hung(&self, now: Instant) -> bool {
        let found = self.watch.look(now);
        if found == Found::Late {
            let model = &self.served.model;
            warn!(model = %model, version = self.served.version, "a run takes too long and is stopped");
        }
        found == Found::Hung
    }
}

/// What instances share.
#[derive(Clone, Debug)]
pub struct Around {
    /// Everything served.
    pub catalogue: Arc<Catalogue>,
    /// Requests that are not to run any more.
    pub cancelled: Arc<Cancelled>,
    /// Requesters that are gone.
    pub readers: Arc<Readers>,
    /// The longest answer.
    pub max_reply_bytes: usize,
    /// Where answers go.
    pub settlements: mpsc::Sender<Vec<Settlement>>,
    /// What is switched: versions that come later must know of it.
    pub live: Arc<Live>,
}

/// Starts an instance of these tiers on its own thread; it ends when the version's pickup closes.
///
/// # Errors
/// When the system has no thread to give.
pub fn spawn(
    mut backend: Box<dyn Backend>,
    serves: TierSet,
    served: Arc<ServedVersion>,
    around: Around,
) -> std::io::Result<Instance> {
    let name = format!("{}:{}", served.model, served.version);
    let watch = Arc::new(Watch::new(backend.stopper()));
    let (watched, watching) = (Arc::clone(&served), Arc::clone(&watch));
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let hands = Hands { served, around };
        let mut is_back = false;
        while let Some(collected) = hands.served.pickup.collect(serves, is_back) {
            is_back = true;
            if !hands.take(collected, &mut *backend, &watching) {
                return;
            }
        }
    })?;
    Ok(Instance { served: watched, thread, watch })
}

/// What an instance's thread works with.
struct Hands {
    served: Arc<ServedVersion>,
    around: Around,
}

impl Hands {
    /// Runs what was collected, or finds why not. Returns whether settlements are still taken.
    fn take(
        &self,
        Collected { batch, expired, charged }: Collected<Job>,
        backend: &mut dyn Backend,
        watch: &Watch,
    ) -> bool {
        let Around { catalogue, cancelled, readers, max_reply_bytes, .. } = &self.around;
        let served = &self.served;
        let is_cancelled = |job: &Job| cancelled.contains(&job.duty.tenant, job.duty.request_id.as_deref());
        let now = Instant::now();
        let is_gone = |job: &Job| {
            let key = job.duty.reply_to.as_ref();
            key.is_some_and(|key| readers.trouble(key.as_str(), now) == Some(Trouble::Gone))
        };
        let (unwanted, batch): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|job| is_cancelled(job) || is_gone(job));
        self.not_run(&unwanted, charged);
        let unwanted = unwanted.into_iter().map(|job| match is_cancelled(&job) {
            true => (job.duty, Verdict::cancelled()),
            false => (job.duty, Verdict::gone()),
        });
        if !self.send(expired.into_iter().map(too_late).chain(unwanted).collect()) {
            return false;
        }
        let (aside, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(|job| served.is_degraded(job));
        if !aside.is_empty() && !self.stand_in(aside, charged, Reason::Switched) {
            return false;
        }
        let Some((batch, begun)) = self.in_time(batch, charged) else { return false };
        if batch.is_empty() {
            return true;
        }
        if !self.is_permitted(&batch) {
            return self.stand_in(batch, charged, Reason::CircuitOpen);
        }
        let run = Run {
            backend,
            watch,
            part_limit: served.inference_timeout,
            served,
            catalogue,
            max_reply_bytes: *max_reply_bytes,
            charged,
            slowest: Duration::ZERO,
            begun: Some(begun),
        };
        run.answer(batch, &|settled| self.send(settled))
    }

    fn send(&self, settled: Vec<Settlement>) -> bool {
        settled.is_empty() || self.around.settlements.blocking_send(settled).is_ok()
    }

    /// Those whose deadlines are to come at the batch's begin, and when that is; `None` once settlements are taken no more. What is to run
    /// alone was not looked at before, and whoever settles something waits where the broker is slow.
    fn in_time(&self, mut batch: Vec<Job>, charged: i64) -> Option<(Vec<Job>, Instant)> {
        loop {
            let now = Instant::now();
            let is_late = |job: &Job| job.deadline.is_some_and(|deadline| deadline <= now);
            let (late, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_late);
            if late.is_empty() {
                return Some((rest, now));
            }
            self.not_run(&late, charged);
            batch = self.send(late.into_iter().map(too_late).collect()).then_some(rest)?;
        }
    }

    /// Gives back what their tiers were charged.
    fn not_run(&self, jobs: &[Job], charged: i64) {
        if jobs.is_empty() {
            return;
        }
        let requests = jobs.iter().map(|job| (job.tier, &job.duty.tenant, job.rows));
        self.served.pickup.failed(requests, charged, Duration::ZERO);
    }

    /// Sends requests that are not run down their ladders.
    fn stand_in(&self, jobs: Vec<Job>, charged: i64, reason: Reason) -> bool {
        self.not_run(&jobs, charged);
        let pause = match reason {
            Reason::Switched => self.served.breaker().wait(),
            _ => self.served.breaker().retry_after(Instant::now()),
        };
        let refused = |job: Job| (job, refusal(&self.served.model, (reason, pause)));
        // Nothing else should run a suspect.
        let (solo, jobs): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(refused).partition(|(job, _)| job.duty.is_solo);
        let mut settled = degraded(jobs.into_iter(), &self.served, &self.around.catalogue, reason);
        settled.extend(solo.into_iter().map(|(job, answer)| (job.duty, Verdict::Reply(answer))));
        self.send(settled)
    }

    /// Whether the breaker lets a batch run; as to suspects, see [`ServedVersion::pause`].
    fn is_permitted(&self, batch: &[Job]) -> bool {
        if batch[0].duty.is_solo {
            return !self.served.breaker().is_forced_open();
        }
        let calls = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        let (is_permitted, transition) = self.served.breaker().permits(calls, Instant::now());
        self.served.tell(transition);
        is_permitted
    }
}

/// Sends requests down their ladders; returns those that are settled by that.
fn degraded(
    refused: impl Iterator<Item = (Job, Answer)>,
    served: &Arc<ServedVersion>,
    catalogue: &Catalogue,
    reason: Reason,
) -> Vec<Settlement> {
    let now = Instant::now();
    let settled = refused.filter_map(|(job, refusal)| {
        let tier = job.tier;
        match descend(job, served, catalogue, reason, refusal, now) {
            Instead::Settled(settlement) => Some(settlement),
            Instead::Run(other, job) => {
                other.pickup.push(tier, job).err().map(|job| (job.duty, Verdict::GiveBack))
            }
        }
    });
    settled.collect()
}

fn too_late(job: Job) -> Settlement {
    let answer = Answer::failure(Code::DeadlineExceeded, "the deadline passed while it waited");
    (job.duty, Verdict::Reply(answer))
}

struct Run<'a> {
    backend: &'a mut dyn Backend,
    watch: &'a Watch,
    /// How long the next run of several may take.
    part_limit: Duration,
    served: &'a Arc<ServedVersion>,
    catalogue: &'a Catalogue,
    max_reply_bytes: usize,
    /// The longest run of it so far.
    slowest: Duration,
    /// Microseconds a row that the batch's tiers were charged, until a run has made up for it.
    charged: i64,
    /// When the deadlines of what runs first were looked at.
    begun: Option<Instant>,
}

impl Run<'_> {
    /// Runs a batch. If it fails, its halves run apart, and so on, so that only the guilty fail; each request is answered as
    /// soon as it can be, and one whose deadline passes meanwhile is not run again. Returns whether `send` still takes settlements.
    ///
    /// Where nobody is answered the model is to blame, not its requests: they go down their ladders.
    fn answer(mut self, batch: Vec<Job>, send: &impl Fn(Vec<Settlement>) -> bool) -> bool {
        let (model, version, jobs) = (&self.served.model, self.served.version, batch.len());
        let (served, catalogue) = (self.served, self.catalogue);
        let (mut answered, mut guilty) = (0, Vec::new());
        let mut has_failed = false;
        let run = |part: &[Job]| {
            let ran = self.run(part);
            if let (Err(error), false, true) = (&ran, has_failed, jobs > 1) {
                has_failed = true;
                warn!(model = %model, version, jobs, %error, "a batch failed; its halves run apart");
            }
            ran
        };
        let is_late = |job: &Job| job.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let goes_on = bisect::run(batch, is_late, run, |part, end| match end {
            End::Answered(answers) => {
                answered += u32::try_from(part.len()).unwrap_or(u32::MAX);
                send(settled(part, answers))
            }
            End::Guilty(error) => {
                guilty.extend(part.into_iter().map(|job| (job, failed(&error), error.is_models())));
                true
            }
            End::Late => send(part.into_iter().map(too_late).collect()),
        });
        let failures = guilty.iter().filter(|(_, _, is_models)| *is_models).count();
        let is_models = answered == 0 && failures > 0;
        let calls = Calls {
            answered,
            failed: if is_models { u32::try_from(failures).unwrap_or(u32::MAX) } else { 0 },
            are_slow: self.slowest >= served.breaker().slow_from(),
        };
        let transition = served.breaker().record(calls, Instant::now());
        served.tell(transition);
        let failures = guilty.into_iter().map(|(job, answer, _)| (job, answer));
        let settled = match is_models {
            true => degraded(failures, served, catalogue, Reason::Failed),
            false => failures.map(|(job, answer)| (job.duty, Verdict::Reply(answer))).collect(),
        };
        goes_on && send(settled)
    }

    /// One answer for each job, in order.
    fn run(&mut self, batch: &[Job]) -> Result<Vec<Answer>, RunError> {
        let collected = self.begun.take().unwrap_or_else(Instant::now);
        let inputs = stacked(self.served, batch)?;
        let total: u64 = batch.iter().map(|job| u64::from(job.rows)).sum();
        debug!(model = %self.served.model, version = self.served.version, rows = total, jobs = batch.len(), "running a batch");
        let started = Instant::now();
        let mut answers = Ok(Vec::new());
        let (served, max_reply_bytes) = (self.served, self.max_reply_bytes);
        let mut busy = None;
        // Its own time is what a request may take, whatever others took.
        let limit = if batch.len() == 1 { self.served.inference_timeout } else { self.part_limit };
        self.watch.begin(limit, started);
        let ran = self.backend.run(&inputs, &mut |outputs| {
            let infer = started.elapsed();
            busy = Some(infer);
            let timing = |job: &Job| Timing {
                queue_us: micros(collected.saturating_duration_since(job.duty.arrived)),
                batch_us: micros(started - collected),
                infer_us: micros(infer),
                batch_size: total,
            };
            answers = answers_of(served, batch, &inputs, outputs, max_reply_bytes, &timing);
        });
        let was_stopped = self.watch.end();
        let ran = match ran {
            Err(BackendError::Model(_)) if was_stopped => {
                // Its parts run next, and others wait: all of them together shall not take much longer than it did.
                self.part_limit = (limit / 2).max(SHORTEST_LIMIT);
                Err(BackendError::Timeout { limit })
            }
            ran => ran,
        };
        let busy = busy.unwrap_or_else(|| started.elapsed());
        self.slowest = self.slowest.max(busy);
        let answers = ran.map_err(RunError::from).and_then(|()| Ok(answers?));
        let requests = batch.iter().map(|job| (job.tier, &job.duty.tenant, job.rows));
        // What the batch was charged was charged once, however often its parts run.
        let charged = std::mem::take(&mut self.charged);
        if answers.is_err() {
            self.served.pickup.failed(requests, charged, busy);
            return answers;
        }
        self.served.pickup.ran(requests, charged, busy);
        self.served.stats.count_run(total, busy);
        for job in batch {
            self.served.stats.count_request(job.tier, u64::from(job.rows));
        }
        debug!(model = %self.served.model, rows = total, jobs = batch.len(), ?busy, "ran a batch");
        answers
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl RunError {
    /// Whether it may be the model's doing. An input that it cannot take is not.
    fn is_models(&self) -> bool {
        !matches!(self, Self::Backend(BackendError::Input { .. }))
    }
}

fn failed(error: &RunError) -> Answer {
    let code = match error {
        RunError::Backend(error) => error.code(),
        RunError::Batch(_) => Code::BackendError,
    };
    Answer::failure(code, error.to_string())
}

fn settled(batch: Vec<Job>, answers: Vec<Answer>) -> Vec<Settlement> {
    batch.into_iter().zip(answers).map(|(job, answer)| (job.duty, Verdict::Reply(answer))).collect()
}
