//! What people would pick instead: how each is started, asked and loaded.
//!
//! All three get what the fleet gets: one single-threaded instance of the same ONNX Runtime, the same model and row, as many
//! requests in flight. Their settings stand in `tests/bench/peers/*.py`, each with what was tried.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lapin::BasicProperties;
use millrace_harness::broker::Broker;
use millrace_harness::process::Process;

use super::amqp::{self, ReplyQueue};
use super::load::{Figures, Processes};
use super::{answer, http};
use crate::fleet::model_file;
use crate::sample::Message;
use crate::scenario::{Model, Scenario};

/// Loading Python, ONNX Runtime and 52 MB of weights on busy cores.
const START: Duration = Duration::from_secs(60);
const READY: &str = "ready";

/// A contestant beside the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Celery,
    AioPika,
    Mosec,
}

/// What all peers are started with.
pub(crate) struct Bench<'a> {
    pub(crate) broker: &'a Broker,
    /// The interpreter of the virtual environment.
    pub(crate) python: PathBuf,
}

/// One measurement.
pub(crate) struct Task<'a> {
    pub(crate) scenario: &'a Scenario,
    /// The right answer to the scenario's row.
    pub(crate) expected: &'a [f32],
    pub(crate) duration: Duration,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::Celery, Self::AioPika, Self::Mosec];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Celery => "Celery (answers not durable)",
            Self::AioPika => "aio-pika batcher",
            Self::Mosec => "Mosec (HTTP, nothing durable)",
        }
    }

    /// Starts it, checks an answer, measures, and ends it.
    pub(crate) async fn measure(self, bench: &Bench<'_>, task: &Task<'_>) -> Result<Figures> {
        match self {
            Self::Celery => celery(bench, task).await,
            Self::AioPika => aio_pika(bench, task).await,
            Self::Mosec => mosec(bench, task).await,
        }
        .with_context(|| format!("{} with {}", self.name(), task.scenario.name()))
    }
}

async fn celery(bench: &Bench<'_>, task: &Task<'_>) -> Result<Figures> {
    let queue = format!("peer.celery.{}", task.scenario.queue_type);
    let url = bench.broker.amqp_url();
    amqp::declare(&url, &queue, task.scenario.queue_type).await?;
    // Celery itself writes the message that is then repeated.
    let sample_queue = format!("{queue}.sample");
    amqp::declare(&url, &sample_queue, "classic").await?;
    let mut sender = bench.start(task, &queue, |command, _| {
        command.args(["-m", "celery_app", &sample_queue]).env("PEER_POOL", "solo");
    })?;
    sender.wait_for_line(READY, START)?;
    let request = amqp::take(&url, &sample_queue).await?;
    let worker = bench.start(task, &queue, |command, _| {
        command.args(["-m", "celery", "--quiet", "--app", "celery_app", "worker", "--loglevel", "WARNING"]);
        command.args(["--without-gossip", "--without-mingle", "--without-heartbeat"]);
        // See `celery_app.py`.
        command.env("PEER_POOL", if task.scenario.model == Model::Tiny { "solo" } else { "prefork" });
    })?;
    over_amqp(bench, task, worker, &queue, ReplyQueue::Transient, request).await
}

async fn aio_pika(bench: &Bench<'_>, task: &Task<'_>) -> Result<Figures> {
    let queue = format!("peer.aio-pika.{}", task.scenario.queue_type);
    amqp::declare(&bench.broker.amqp_url(), &queue, task.scenario.queue_type).await?;
    let worker = bench.start(task, &queue, |command, _| {
        command.args(["-m", "aio_pika_worker"]);
    })?;
    let properties = BasicProperties::default().with_delivery_mode(2);
    let request = Message { properties, body: task.scenario.row_bytes() };
    over_amqp(bench, task, worker, &queue, ReplyQueue::Durable, request).await
}

async fn over_amqp(
    bench: &Bench<'_>,
    task: &Task<'_>,
    mut worker: Process,
    queue: &str,
    replies: ReplyQueue,
    request: Message,
) -> Result<Figures> {
    worker.wait_for_line(READY, START)?;
    let mut client = amqp::Client::connect(&bench.broker.amqp_url(), queue, replies, request).await?;
    answer::check(queue, &client.ask().await?, task.expected)?;
    let broker = Some(u32::try_from(bench.broker.process().pid())?);
    let processes = Processes { worker: worker.pid(), broker };
    client.load(task.scenario.model.in_flight(), processes, task.duration).await
}

async fn mosec(bench: &Bench<'_>, task: &Task<'_>) -> Result<Figures> {
    let address = free_address()?;
    let mut worker = bench.start(task, "", |command, directory| {
        let port = address.port().to_string();
        command.args(["-m", "mosec_server", "--address", "127.0.0.1", "--port", &port]);
        command.args(["--log-level", "warning", "--timeout", "60000", "--path"]).arg(directory.join("mosec"));
    })?;
    let client = http::Client::new(address, task.scenario.row_bytes());
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
    client.load(task.scenario.model.in_flight(), processes, task.duration).await
}

/// An address that nobody listens at.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Bench<'_> {
    /// Starts a Python program in a directory of its own, which holds the model and goes with it.
    fn start(
        &self,
        task: &Task<'_>,
        queue: &str,
        configure: impl FnOnce(&mut Command, &Path),
    ) -> Result<Process> {
        let directory = tempfile::Builder::new().prefix("millrace-peer-").tempdir()?;
        let model = model_file(directory.path(), task.scenario.model)?;
        let row_file = directory.path().join("row");
        std::fs::write(&row_file, task.scenario.row_bytes())?;
        let row: Vec<String> = task.scenario.model.row().iter().map(i64::to_string).collect();
        let mut command = Command::new(&self.python);
        configure(&mut command, directory.path());
        command
            .current_dir(directory.path())
            .env("PYTHONPATH", sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("ORT_DISABLE_TELEMETRY", "1")
            .env("PEER_MODEL", model)
            .env("PEER_ROW", row_file)
            .env("PEER_ROW_SHAPE", format!("[{}]", row.join(",")))
            .env("PEER_MAX_BATCH_SIZE", task.scenario.model.largest_batch().to_string())
            .env("PEER_AMQP_URL", self.broker.amqp_url())
            .env("PEER_QUEUE", queue)
            .env("PEER_QUEUE_TYPE", task.scenario.queue_type);
        Process::spawn_group(command, directory)
    }
}

/// The peers' Python sources and pins.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}
