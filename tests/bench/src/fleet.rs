//! The fleet: one worker process, one client, single-row requests in a closed loop.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millrace_harness::broker::Broker;
use millrace_harness::process::WorkerProcess;
use millrace_harness::{models, setup};
use millrace_producer::{Client, Config};

use millrace_common::amqp::topology::{Names, QueueKind};

use crate::cpu::Meter;
use crate::sample::Sample;
use crate::scenario::{Model, Scenario};

/// What the fleet did.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) rate: f64,
    /// CPU microseconds a request: client, worker, broker.
    pub(crate) cpu_us: [f64; 3],
    /// Mean rows of a batch.
    pub(crate) batch: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// How many rows the client puts into a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rows {
    /// One.
    Single,
    /// As many as the library packs by default.
    Packed,
}

impl Rows {
    /// What the comparison with peers measures.
    pub(crate) const MEASURED: &[Self] = &[Self::Single, Self::Packed];

    fn configure(self, config: &mut Config) {
        if self == Self::Single {
            config.requests.pack_linger_us = 0;
        }
    }
}

/// Writes the model into a repository and returns its file.
pub(crate) fn model_file(repository: &Path, model: Model) -> Result<PathBuf> {
    if let Some(generated) = model.generated() {
        return models::write(repository, model.name(), 1, &generated);
    }
    let target = repository.join(model.name()).join("1");
    std::fs::create_dir_all(&target)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../compose/models/digits/1/model.onnx");
    std::fs::copy(source, target.join("model.onnx"))?;
    Ok(target.join("model.onnx"))
}

/// The broker's name for a type of queue.
pub(crate) fn queue_kind(name: &str) -> Result<QueueKind> {
    QueueKind::try_from(name.to_owned()).map_err(anyhow::Error::msg)
}

/// Measures for `duration`, after a second of warm-up. Returns a request and its reply as well.
pub(crate) async fn measure(
    broker: &Broker,
    library: &Path,
    scenario: &Scenario,
    rows: Rows,
    duration: Duration,
) -> Result<(Fleet, Sample)> {
    let directory = tempfile::tempdir()?;
    model_file(directory.path(), scenario.model)?;
    models::write_config(directory.path(), scenario.model.name(), "[[instance_group]]\ncount = 1\n")?;
    let url = broker.amqp_url();
    let prefix = format!("bench-{}", scenario.name().replace(' ', "-"));
    let repository = directory.path().display().to_string();
    let library = library.display().to_string();
    let mut worker = WorkerProcess::spawn(
        &[],
        &[
            ("MILLRACE_AMQP_URL", &url),
            ("MILLRACE__TOPOLOGY__PREFIX", &prefix),
            ("MILLRACE__TOPOLOGY__QUEUE_TYPE", scenario.queue_type),
            ("MILLRACE__MODELS__REPOSITORY", &repository),
            (setup::LIBRARY_VARIABLE, &library),
        ],
    )?;
    worker.wait_for_line("ready worker=", Duration::from_secs(60))?;
    let mut config = Config::load(None)?;
    config.broker.addresses = vec![url.parse()?];
    config.topology.prefix = prefix;
    config.topology.queue_type = queue_kind(scenario.queue_type)?;
    rows.configure(&mut config);
    let key = Names::request_key(scenario.model.name(), &config.topology.tiers[0].name);
    let client = Client::connect(config).await?;
    let sample = Sample::take(&url, &client, scenario.request()?, &key).await?;
    let broker = u32::try_from(broker.process().pid())?;
    let fleet = load(&client, scenario, duration, [std::process::id(), worker.pid(), broker]).await?;
    client.close().await;
    worker.terminate();
    worker.wait(Duration::from_secs(30)).context("the worker drains")?;
    Ok((fleet, sample))
}

async fn load(client: &Client, scenario: &Scenario, duration: Duration, pids: [u32; 3]) -> Result<Fleet> {
    let request = scenario.request()?;
    let mut open = FuturesUnordered::new();
    let send = || {
        let (client, request) = (client.clone(), request.clone());
        async move {
            let started = Instant::now();
            let outcome = client.infer(request).await;
            (started.elapsed(), outcome)
        }
    };
    for _ in 0..scenario.model.in_flight() {
        open.push(send());
    }
    let mut started = Instant::now();
    let mut meter = Meter::start(&pids);
    let mut is_warm = false;
    let mut latencies: Vec<Duration> = Vec::new();
    let mut rows = 0.0;
    while let Some((latency, outcome)) = open.next().await {
        let response = outcome?;
        latencies.push(latency);
        rows += response.timing().batch_size as f64;
        if !is_warm && started.elapsed() > Duration::from_secs(1) {
            (is_warm, started, meter, rows) = (true, Instant::now(), Meter::start(&pids), 0.0);
            latencies.clear();
        } else if is_warm && started.elapsed() > duration {
            break;
        }
        open.push(send());
    }
    let seconds = started.elapsed().as_secs_f64();
    let count = latencies.len().max(1) as f64;
    let cpu: Vec<f64> = meter.stop().iter().map(|cpu| cpu.as_secs_f64() * 1e6 / count).collect();
    // What is still in flight is answered before the connection closes.
    while open.next().await.is_some() {}
    latencies.sort_unstable();
    let percentile =
        |part: f64| latencies.get((count * part) as usize).map_or(0.0, |l| l.as_secs_f64() * 1e3);
    Ok(Fleet {
        rate: count / seconds,
        cpu_us: [cpu[0], cpu[1], cpu[2]],
        batch: rows / count,
        p50_ms: percentile(0.5),
        p99_ms: percentile(0.99),
    })
}
