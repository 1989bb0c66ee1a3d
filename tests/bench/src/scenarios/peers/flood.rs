//! Premium's latency while free clients send three times the capacity: Celery's and the fleet's, each of its own capacity.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::amqp::{self, Flooded, ReplyQueue};
use super::answer;
use super::closed_loop::Processes;
use super::peer::{Task, celery_worker};
use crate::load::poisson;
use crate::report::Spread;
use crate::scenarios::flood::{self, LENGTH, PREMIUM_PART};

/// Offered, of the capacity.
const FACTOR: f64 = 3.0;
/// Who is compared, the first with all others: the fleet by how long a batch may take, and Celery by how many tasks its worker takes ahead.
const SIDES: [Who; 5] = [
    Who::Fleet(None),
    Who::Fleet(Some(Duration::from_millis(10))),
    Who::Celery(1),
    Who::Celery(4),
    Who::Celery(32),
];
/// Of the case, for `--only`.
pub(super) const NAME: &str = "mid flood 3x";
pub(super) const COLUMNS: [&str; 7] = [
    "who",
    "capacity /s",
    "served /s in the flood",
    "premium alone p50 / p99 ms",
    "premium in the flood p50 / p99 ms",
    "this p99 ÷ the fleet's",
    "free, as far as answered, p50 / p99 ms",
];

#[derive(Clone, Copy, Debug)]
enum Who {
    Fleet(Option<Duration>),
    Celery(u16),
}

impl Who {
    fn name(self) -> String {
        match self {
            Self::Fleet(None) => "**fleet**, as it is".to_owned(),
            Self::Fleet(Some(time)) => format!("**fleet**, batches of {} ms at most", time.as_millis()),
            Self::Celery(prefetch) => format!("Celery, priorities, prefetch {prefetch}"),
        }
    }
}

/// What one side did in one run.
pub(super) struct Side {
    capacity: f64,
    served: f64,
    /// p50 and p99 of premium alone, premium in the flood, and free.
    latencies_ms: [[f64; 2]; 3],
}

/// One run, in the order of [`SIDES`].
pub(super) type Run = Vec<Side>;

pub(super) fn measure(task: &Task<'_>, run: u64) -> Result<Run> {
    let each = |who: &Who| {
        let side = match who {
            Who::Fleet(batch_time) => fleet(task, *batch_time, run),
            Who::Celery(prefetch) => {
                let celery = celery(task, *prefetch, run);
                task.context.runtime.block_on(celery).context("Celery in a flood")
            }
        }?;
        let [p50, p99] = side.latencies_ms[1];
        eprintln!("  {}: {:.0}/s, premium p50 / p99 {p50:.1} / {p99:.1} ms", who.name(), side.served);
        Ok(side)
    };
    SIDES.iter().map(each).collect()
}

fn fleet(task: &Task<'_>, batch_time: Option<Duration>, run: u64) -> Result<Side> {
    let (alone, flooded) = flood::once(task.context, FACTOR, batch_time, run)?;
    let outcomes = [&alone.premium, &flooded.premium, &flooded.free];
    for premium in &outcomes[..2] {
        ensure!(premium.counts.served == premium.counts.offered, "premium requests were not served");
    }
    Ok(Side {
        capacity: alone.capacity,
        served: flooded.premium.rate() + flooded.free.rate(),
        latencies_ms: outcomes.map(|outcome| [0.5, 0.99].map(|quantile| outcome.latency_ms(quantile))),
    })
}

/// Celery with a queue that has priorities, as quorum queues have none before RabbitMQ 4.
async fn celery(task: &Task<'_>, prefetch: u16, run: u64) -> Result<Side> {
    let (context, url) = (task.context, task.context.broker.amqp_url());
    let queue = "peer.celery.priorities";
    let (worker, request) = celery_worker(task, queue, Some(prefetch)).await?;
    let mut client = amqp::Client::connect(&url, queue, ReplyQueue::Transient, request).await?;
    answer::check(queue, &client.ask().await?, task.expected)?;
    let processes = Processes { worker: worker.pid(), broker: None };
    let capacity = client.load(task.workload.in_flight(), processes, context.duration()).await?.rate;
    client.settle().await?;
    let premium = |length, seed| poisson(capacity * PREMIUM_PART, Duration::ZERO..length, seed);
    let length = context.duration() * 2;
    let alone = client.flood(premium(length, run), std::iter::empty(), length).await?;
    let length = context.duration() * LENGTH;
    let free = poisson(capacity * (FACTOR - PREMIUM_PART), Duration::ZERO..length, run + 2000);
    let flooded = client.flood(premium(length, run + 1000), free, length).await?;
    drop(worker);
    // Its backlog must not burden what comes next.
    amqp::delete(&url, queue).await?;
    let Flooded { premium, answers, free } = flooded;
    Ok(Side {
        capacity,
        served: answers as f64 / length.as_secs_f64(),
        latencies_ms: [alone.premium, premium, free].map(|latencies| quantiles(&latencies)),
    })
}

/// p50 and p99 of ascending latencies, milliseconds.
fn quantiles(latencies: &[Duration]) -> [f64; 2] {
    let at = |part: f64| latencies.get(((latencies.len() as f64 * part).ceil() as usize).saturating_sub(1));
    [0.5, 0.99].map(|part| at(part).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3))
}

/// A row each.
pub(super) fn rows(runs: &[Run]) -> Vec<Vec<String>> {
    let row = |(index, who): (usize, &Who)| {
        let spread = |value: &dyn Fn(&Side) -> f64| Spread::of(runs, |run| value(&run[index]));
        let latency = |which: usize| {
            let [p50, p99] = [0, 1].map(|part| spread(&|side| side.latencies_ms[which][part]).text(1));
            format!("{p50} / {p99}")
        };
        let ratio = match who {
            Who::Fleet(_) => String::new(),
            Who::Celery(_) => {
                Spread::of(runs, |run| run[index].latencies_ms[1][1] / run[0].latencies_ms[1][1]).ratio()
            }
        };
        vec![
            who.name(),
            spread(&|side| side.capacity).text(0),
            spread(&|side| side.served).text(0),
            latency(0),
            latency(1),
            ratio,
            latency(2),
        ]
    };
    SIDES.iter().enumerate().map(row).collect()
}
