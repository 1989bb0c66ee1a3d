//! What people would pick instead: how each is started, asked and loaded.
//!
//! All three get what the fleet gets: one single-threaded instance of the same ONNX Runtime, the same model and row, as many
//! requests in flight. Their settings stand in `tests/bench/peers/*.py`, each with what was tried.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lapin::BasicProperties;
use millrace_common::amqp::topology::QueueKind;
use millrace_harness::process::Process;

use super::amqp::{self, ReplyQueue};
use super::closed_loop::{Figures, Processes};
use super::{answer, http};
use crate::context::Context;
use crate::limits::sample::Message;
use crate::workload::{Model, Workload};

/// Loading Python, ONNX Runtime and 52 MB of weights on busy cores.
const START: Duration = Duration::from_secs(60);
const READY: &str = "ready";

/// A contestant beside the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Celery,
    AioPika,
    Mosec,
}

/// One measurement.
pub(super) struct Task<'a> {
    pub(super) context: &'a Context,
    /// The interpreter of the virtual environment.
    pub(super) python: &'a Path,
    pub(super) workload: Workload,
    /// The right answer to the workload's row.
    pub(super) expected: &'a [f32],
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Celery => "Celery (answers not durable)",
            Self::AioPika => "aio-pika batcher",
            Self::Mosec => "Mosec (HTTP, nothing durable)",
        }
    }

    /// Starts it, checks an answer, measures, and ends it.
    pub(super) async fn measure(self, task: &Task<'_>) -> Result<Figures> {
        match self {
            Self::Celery => celery(task).await,
            Self::AioPika => aio_pika(task).await,
            Self::Mosec => mosec(task).await,
        }
        .with_context(|| format!("{} with {}", self.name(), task.workload.name()))
    }
}

async fn celery(task: &Task<'_>) -> Result<Figures> {
    let queue = format!("peer.celery.{}", task.workload.queue_type);
    let (worker, request) = celery_worker(task, &queue, None).await?;
    over_amqp(task, worker, &queue, ReplyQueue::Transient, request).await
}

/// A worker of a queue of its own, and a message for it, as Celery itself writes it. Where the queue has priorities the worker takes
/// so many tasks ahead.
pub(super) async fn celery_worker(
    task: &Task<'_>,
    queue: &str,
    prefetch: Option<u16>,
) -> Result<(Process, Message)> {
    let url = task.context.broker.amqp_url();
    let max_priority = prefetch.map(|_| amqp::MAX_PRIORITY);
    amqp::declare(&url, queue, task.workload.queue_type, max_priority).await?;
    let sample_queue = format!("{queue}.sample");
    amqp::declare(&url, &sample_queue, QueueKind::Classic, None).await?;
    let mut sender = task.start(queue, |command, _| {
        command.args(["-m", "celery_app", &sample_queue]).env("PEER_POOL", "solo");
    })?;
    sender.wait_for_line(READY, START)?;
    let request = amqp::take(&url, &sample_queue).await?;
    let mut worker = task.start(queue, |command, _| {
        command.args(["-m", "celery", "--quiet", "--app", "celery_app", "worker", "--loglevel", "WARNING"]);
        command.args(["--without-gossip", "--without-mingle", "--without-heartbeat"]);
        // See `celery_app.py`.
        command.env("PEER_POOL", if task.workload.model == Model::Tiny { "solo" } else { "prefork" });
        if let Some(prefetch) = prefetch {
            command.env("PEER_MAX_PRIORITY", amqp::MAX_PRIORITY.to_string());
            command.env("PEER_PREFETCH", prefetch.to_string());
        }
    })?;
    worker.wait_for_line(READY, START)?;
    Ok((worker, request))
}

async fn aio_pika(task: &Task<'_>) -> Result<Figures> {
    let queue = format!("peer.aio-pika.{}", task.workload.queue_type);
    amqp::declare(&task.context.broker.amqp_url(), &queue, task.workload.queue_type, None).await?;
    let mut worker = task.start(&queue, |command, _| {
        command.args(["-m", "aio_pika_worker"]);
    })?;
    worker.wait_for_line(READY, START)?;
    let properties = BasicProperties::default().with_delivery_mode(2);
    let request = Message { properties, body: task.workload.model.row_bytes().1 };
    over_amqp(task, worker, &queue, ReplyQueue::Durable, request).await
}

async fn over_amqp(
    task: &Task<'_>,
    worker: Process,
    queue: &str,
    replies: ReplyQueue,
    request: Message,
) -> Result<Figures> {
    let mut client = amqp::Client::connect(&task.context.broker.amqp_url(), queue, replies, request).await?;
    answer::check(queue, &client.ask().await?, task.expected)?;
    let broker = Some(u32::try_from(task.context.broker.process().pid())?);
    let processes = Processes { worker: worker.pid(), broker };
    client.load(task.workload.in_flight(), processes, task.context.duration()).await
}

async fn mosec(task: &Task<'_>) -> Result<Figures> {
    let address = free_address()?;
    let mut worker = task.start("", |command, directory| {
        let port = address.port().to_string();
        command.args(["-m", "mosec_server", "--address", "127.0.0.1", "--port", &port]);
        command.args(["--log-level", "warning", "--timeout", "60000", "--path"]).arg(directory.join("mosec"));
    })?;
    let client = http::Client::new(address, task.workload.model.row_bytes().1);
    let started = Instant::now();
    let reply = loop {
        match client.ask().await {
            Ok(reply) => break reply,
            Err(error) if started.elapsed() > START || !worker.is_running() => {
                return Err(error.context(worker.stderr()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    answer::check("Mosec", &reply, task.expected)?;
    let processes = Processes { worker: worker.pid(), broker: None };
    client.load(task.workload.in_flight(), processes, task.context.duration()).await
}

/// An address that nobody listens at.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Task<'_> {
    /// Starts a Python program in a directory of its own, which holds the model and goes with it.
    fn start(&self, queue: &str, configure: impl FnOnce(&mut Command, &Path)) -> Result<Process> {
        let directory = self.context.scratch()?;
        let model = self.workload.model.write(directory.path())?;
        let row_file = directory.path().join("row");
        std::fs::write(&row_file, self.workload.model.row_bytes().1)?;
        let row: Vec<String> = self.workload.model.row().iter().map(i64::to_string).collect();
        let mut command = Command::new(self.python);
        configure(&mut command, directory.path());
        command
            .current_dir(directory.path())
            .env("PYTHONPATH", sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("ORT_DISABLE_TELEMETRY", "1")
            .env("PEER_MODEL", model)
            .env("PEER_ROW", row_file)
            .env("PEER_ROW_SHAPE", format!("[{}]", row.join(",")))
            .env("PEER_MAX_BATCH_SIZE", self.workload.model.largest_batch().to_string())
            .env("PEER_AMQP_URL", self.context.broker.amqp_url())
            .env("PEER_QUEUE", queue)
            .env("PEER_QUEUE_TYPE", self.workload.queue_type.to_string());
        Process::spawn_group(command, directory)
    }
}

/// The peers' Python sources and pins.
pub(super) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}
