//! A thread that owns a back end: collects a batch, runs it, splits it into answers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_common::amqp::message::Timing;
use millrace_common::protocol::codec::{ResponseHead, TensorView, encode_response};
use millrace_common::protocol::status::Code;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::backend::{Backend, BackendError};
use crate::catalogue::ServedVersion;
use crate::job::{Answer, Job, Settlement, Verdict};
use crate::schedule::batch::{BatchError, BatchInput, BatchOutput, split, stack};
use crate::schedule::pickup::Collected;
use crate::schedule::runs::cut;
use crate::schedule::tier_set::TierSet;

/// Starts an instance of these tiers on its own thread; it ends when the version's pickup closes.
///
/// # Errors
/// When the system has no thread to give.
pub fn spawn(
    mut backend: Box<dyn Backend>,
    serves: TierSet,
    served: Arc<ServedVersion>,
    max_reply_bytes: usize,
    settlements: mpsc::Sender<Vec<Settlement>>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let name = format!("{}:{}", served.model, served.version);
    std::thread::Builder::new().name(name).spawn(move || {
        let send = |settled: Vec<Settlement>| settlements.blocking_send(settled).is_ok();
        while let Some(Collected { batch, expired, charged }) = served.pickup.collect(serves) {
            let expired: Vec<Settlement> = expired.into_iter().map(too_late).collect();
            if !expired.is_empty() && !send(expired) {
                return;
            }
            let run = Run { backend: &mut *backend, served: &served, max_reply_bytes, charged };
            if !batch.is_empty() && !run.answer(batch, &send) {
                return;
            }
        }
    })
}

fn too_late(job: Job) -> Settlement {
    let answer = Answer::failure(Code::DeadlineExceeded, "the deadline passed while it waited");
    (job.duty, Verdict::Reply(answer))
}

struct Run<'a> {
    backend: &'a mut dyn Backend,
    served: &'a ServedVersion,
    max_reply_bytes: usize,
    /// Microseconds a row that the batch's tiers were charged.
    charged: i64,
}

impl Run<'_> {
    /// Runs a batch. If it fails, each of its requests runs again alone, so that only the guilty one fails; each is answered
    /// at once, and one whose deadline passes meanwhile is not run. Returns whether `send` still takes settlements.
    fn answer(mut self, batch: Vec<Job>, send: &impl Fn(Vec<Settlement>) -> bool) -> bool {
        let error = match self.run(&batch) {
            Ok(answers) => return send(settled(batch, answers)),
            Err(error) if batch.len() == 1 => return send(settled(batch, vec![failed(&error)])),
            Err(error) => error,
        };
        warn!(model = %self.served.model, version = self.served.version, jobs = batch.len(), %error,
            "a batch failed; its requests run alone");
        batch.into_iter().all(|job| {
            if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return send(vec![too_late(job)]);
            }
            let alone = vec![job];
            let answer = match self.run(&alone) {
                Ok(mut answers) => answers.swap_remove(0),
                Err(error) => failed(&error),
            };
            send(settled(alone, vec![answer]))
        })
    }

    /// One answer for each job, in order.
    fn run(&mut self, batch: &[Job]) -> Result<Vec<Answer>, RunError> {
        let collected = Instant::now();
        let inputs = stacked(self.served, batch)?;
        let total: u64 = batch.iter().map(|job| u64::from(job.rows)).sum();
        debug!(model = %self.served.model, version = self.served.version, rows = total, jobs = batch.len(), "running a batch");
        let started = Instant::now();
        let mut answers = Ok(Vec::new());
        let (served, max_reply_bytes) = (self.served, self.max_reply_bytes);
        let mut busy = Duration::ZERO;
        self.backend.run(&inputs, &mut |outputs| {
            busy = started.elapsed();
            let timing = |job: &Job| Timing {
                queue_us: micros(collected.saturating_duration_since(job.duty.arrived)),
                batch_us: micros(started - collected),
                infer_us: micros(busy),
                batch_size: total,
            };
            answers = answers_of(served, batch, &inputs, outputs, max_reply_bytes, &timing);
        })?;
        self.served.stats.count_run(total, busy);
        self.served.pickup.ran(
            batch.iter().map(|job| (job.tier, &job.duty.tenant, job.rows)),
            self.charged,
            busy,
        );
        for job in batch {
            self.served.stats.count_request(job.tier, u64::from(job.rows));
        }
        debug!(model = %self.served.model, rows = total, jobs = batch.len(), ?busy, "ran a batch");
        Ok(answers?)
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Batch(#[from] BatchError),
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

fn stacked<'a>(served: &'a ServedVersion, batch: &'a [Job]) -> Result<Vec<BatchInput<'a>>, BatchError> {
    let slots = served.rules.signature.inputs.iter().enumerate();
    slots
        .map(|(index, slot)| {
            let parts = batch.iter().map(|job| {
                let tensor = &job.inputs[index];
                (tensor.shape.as_slice(), &tensor.data[..])
            });
            let padding = served.rules.padding.as_ref().and_then(|padding| padding.element(index));
            stack(&slot.name, batch[0].inputs[index].datatype, parts, padding)
        })
        .collect()
}

fn answers_of(
    served: &ServedVersion,
    batch: &[Job],
    inputs: &[BatchInput<'_>],
    outputs: &[Option<BatchOutput<'_>>],
    max_reply_bytes: usize,
    timing: &dyn Fn(&Job) -> Timing,
) -> Result<Vec<Answer>, BatchError> {
    // Alone, a request gets what the model gives.
    let padding = served.rules.padding.as_ref().filter(|_| batch.len() > 1);
    if let Some(padding) = padding {
        padding.check(inputs, outputs)?;
    }
    let rows: Vec<u32> = batch.iter().map(|job| job.rows).collect();
    let ranges = outputs
        .iter()
        .enumerate()
        .map(|(index, output)| output.as_ref().map_or(Ok(Vec::new()), |output| split(index, output, &rows)))
        .collect::<Result<Vec<_>, _>>()?;
    let output = |index: usize| outputs[index].as_ref().expect("admission lets no other output be asked for");
    let version = served.version.to_string();
    let answers = batch.iter().enumerate().map(|(position, job)| {
        let parts: Vec<(Vec<i64>, Cow<'_, [u8]>)> = job
            .outputs
            .iter()
            .map(|&(index, _)| {
                let data = &output(index).data[ranges[index][position].clone()];
                let mut shape = output(index).shape.to_vec();
                if batch.len() > 1 {
                    shape[0] = i64::from(job.rows);
                }
                let (Some(padding), Some(size)) = (padding, output(index).datatype.element_size()) else {
                    return (shape, Cow::Borrowed(data));
                };
                let wide = shape.clone();
                padding.cut(index, &mut shape, |input, axis| job.inputs[input].shape[axis]);
                let data = cut(data, size, &wide, &shape);
                (shape, data)
            })
            .collect();
        let views: Vec<TensorView<'_>> = job
            .outputs
            .iter()
            .zip(&parts)
            .map(|(&(index, encoding), (shape, data))| TensorView {
                name: &served.rules.signature.outputs[index].name,
                datatype: output(index).datatype,
                shape,
                data,
                encoding,
            })
            .collect();
        let head = ResponseHead {
            model_name: &served.model,
            model_version: Some(&version),
            id: job.body_id.as_deref(),
        };
        let answer = match encode_response(head, &views) {
            Ok(body) if body.bytes.len() > max_reply_bytes => Answer::failure(
                Code::TooLarge,
                format!(
                    "the result has {} bytes, limits.max_body_bytes is {max_reply_bytes}",
                    body.bytes.len()
                ),
            ),
            Ok(body) => Answer { failure: None, body, timing: Timing::default(), model_version: None },
            Err(error) => Answer::failure(Code::InvalidInput, error.to_string()),
        };
        Answer { timing: timing(job), model_version: Some(served.version), ..answer }
    });
    Ok(answers.collect())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
