//! One measurement's stack: its own names on the broker, a model repository, workers, clients.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};
use millrace_common::amqp::topology::{Names, Topology};
use millrace_common::config::sections::TierSettings;
use millrace_harness::process::WorkerProcess;
use millrace_harness::{models, setup};
use millrace_producer::{Client, Config};
use tempfile::TempDir;

use crate::context::Context;
use crate::cpu::{self, Meter};
use crate::limits::sample::Sample;
use crate::load::{Arrivals, ClientKind, Generator, Outcome, Spec, config};
use crate::slow::Slowed;
use crate::workload::Workload;

/// A model's configuration: a thread for each worker, as the raw loop has one.
const ONE_INSTANCE: &str = "[[instance_group]]\ncount = 1\n";
const READY: Duration = Duration::from_secs(60);
/// Ahead of the common start: clients look for the word every few milliseconds.
const HEAD_START: Duration = Duration::from_millis(100);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Lag of a generator, milliseconds, above which its latencies are partly its own.
const LAG_LIMIT_MS: f64 = 5.0;

pub(crate) struct Stack<'a> {
    context: &'a Context,
    workload: Workload,
    prefix: String,
    repository: TempDir,
    policy: Option<String>,
    pub(crate) workers: Vec<WorkerProcess>,
}

/// What clients saw, and what their requests took.
pub(crate) struct Run {
    pub(crate) outcomes: Vec<Outcome>,
    /// CPU time in the counted time: of each client, of all workers, of the broker.
    pub(crate) client_cpu: Vec<Duration>,
    pub(crate) worker_cpu: Duration,
    /// Of the workers': their instances' threads.
    pub(crate) model_cpu: Duration,
    pub(crate) broker_cpu: Duration,
    /// Counted time.
    pub(crate) seconds: f64,
    /// The broker's memory before the start, and the most that was seen.
    pub(crate) memory_mib: [u64; 2],
}

impl<'a> Stack<'a> {
    /// Broker names of its own and the workload's model; no worker yet.
    pub(crate) fn new(context: &'a Context, scenario: &str, workload: Workload) -> Result<Self> {
        let repository = context.scratch()?;
        workload.model.write(repository.path())?;
        models::write_config(repository.path(), workload.model.name(), ONE_INSTANCE)?;
        let prefix = format!("bench-{scenario}-{}", workload.name().replace(' ', "-"));
        Ok(Self { context, workload, prefix, repository, policy: None, workers: Vec::new() })
    }

    /// Configures the model for workers started from now on: a tier with an instance that serves nothing else, beside the one for all,
    /// and how long a batch may take.
    pub(crate) fn configure_model(&self, reserved: Option<&str>, batch_time: Option<Duration>) -> Result<()> {
        let reserved =
            reserved.map(|tier| format!("\n{ONE_INSTANCE}tiers = [\"{tier}\"]\n")).unwrap_or_default();
        let batching = batch_time.map(|time| {
            format!("\n[dynamic_batching]\nmax_batch_time_microseconds = {}\n", time.as_micros())
        });
        let config = [ONE_INSTANCE, &reserved, &batching.unwrap_or_default()].concat();
        models::write_config(self.repository.path(), self.workload.model.name(), &config)?;
        Ok(())
    }

    /// Starts a worker with more environment of its own, and waits until it consumes.
    pub(crate) fn start_worker(&mut self, more: &[(&str, &str)]) -> Result<()> {
        let mut worker = self.spawn_worker(more)?;
        worker.wait_for_line("ready worker=", READY)?;
        self.workers.push(worker);
        Ok(())
    }

    /// Starts a worker that is so many times slower from its first moment, until the guard is dropped.
    pub(crate) fn start_slowed_worker(&mut self, factor: u32) -> Result<Slowed> {
        let mut worker = self.spawn_worker(&[])?;
        let slowed = Slowed::by(factor, worker.pid())?;
        worker.wait_for_line("ready worker=", READY * factor)?;
        self.workers.push(worker);
        Ok(slowed)
    }

    /// What the environment cannot say of the topology: a file for workers.
    fn tiers(&self) -> Result<PathBuf> {
        use std::fmt::Write as _;
        let mut text = String::new();
        for tier in self.config()?.topology.tiers {
            let TierSettings {
                name,
                weight,
                max_share,
                max_length,
                max_length_bytes,
                default_budget_ms,
                shards,
            } = tier;
            writeln!(
                text,
                "[[topology.tiers]]\nname = \"{name}\"\nweight = {weight}\nmax_share = {max_share:?}\nmax_length = {max_length}\n\
                 max_length_bytes = {max_length_bytes}\ndefault_budget_ms = {default_budget_ms}\nshards = {shards}"
            )?;
        }
        let file = self.context.broker.directory().join(format!("{}.toml", self.prefix));
        std::fs::write(&file, text)?;
        Ok(file)
    }

    fn spawn_worker(&self, more: &[(&str, &str)]) -> Result<WorkerProcess> {
        let url = self.context.broker.amqp_url();
        let tiers = self.tiers()?.display().to_string();
        let queue_type = self.workload.queue_type.to_string();
        let [repository, library] =
            [self.repository.path(), &self.context.library].map(|path| path.display().to_string());
        let mut environment = vec![
            ("MILLRACE_AMQP_URL", url.as_str()),
            ("MILLRACE_CONFIG", &tiers),
            ("MILLRACE__TOPOLOGY__PREFIX", &self.prefix),
            ("MILLRACE__TOPOLOGY__QUEUE_TYPE", &queue_type),
            ("MILLRACE__MODELS__REPOSITORY", &repository),
            (setup::LIBRARY_VARIABLE, &library),
        ];
        environment.extend_from_slice(more);
        WorkerProcess::spawn(&[], &environment)
    }

    /// The configuration of its clients.
    pub(crate) fn config(&self) -> Result<Config> {
        config(&self.context.broker.amqp_url(), &self.prefix, self.workload)
    }

    /// One library client's work: a second of warm-up, then the benchmark's duration.
    pub(crate) fn spec(&self, tier: &str, arrivals: Arrivals) -> Spec {
        Spec {
            url: self.context.broker.amqp_url(),
            prefix: self.prefix.clone(),
            workload: self.workload,
            tier: tier.to_owned(),
            client: ClientKind::Library,
            arrivals,
            quiet: Duration::ZERO,
            warm_up: Duration::from_secs(1),
            duration: self.context.duration(),
            deadline: Duration::from_secs(60),
            give_up: Duration::from_secs(10),
            skew_ms: 0,
            seed: 17,
            go: PathBuf::new(),
        }
    }

    /// A request and its reply as they are on the wire.
    pub(crate) fn sample(&self) -> Result<Sample> {
        let config = self.config()?;
        let key = Names::request_key(self.workload.model.name(), &config.topology.tiers[0].name);
        let url = self.context.broker.amqp_url();
        self.context.runtime.block_on(async {
            let request = self.workload.request(config.topology.tiers[0].name.as_str())?;
            let client = Client::connect(config).await?;
            let sample = Sample::take(&url, &client, request, &key).await;
            client.close().await;
            sample
        })
    }

    /// Requests a second of the lowest tier in a closed loop.
    pub(crate) fn capacity(&self) -> Result<f64> {
        let in_flight = self.workload.in_flight() * self.workers.len().max(1);
        let mut run = self.run(vec![self.spec("free", Arrivals::Closed { in_flight })])?;
        Ok(run.outcomes.remove(0).checked()?.rate())
    }

    /// Runs clients side by side, and watches what all processes take.
    pub(crate) fn run(&self, specs: Vec<Spec>) -> Result<Run> {
        let spawn = |spec| Generator::spawn(spec, self.context.scratch()?);
        let mut clients = specs.into_iter().map(spawn).collect::<Result<Vec<_>>>()?;
        clients.iter_mut().try_for_each(Generator::ready)?;
        let broker = &self.context.broker;
        let mut memory_mib = [broker.memory_mib()?; 2];
        let pids: Vec<u32> = (clients.iter().map(Generator::pid))
            .chain(self.workers.iter().map(|worker| worker.pid()))
            .chain([u32::try_from(broker.process().pid())?])
            .collect();
        clients.iter().try_for_each(|client| client.go(SystemTime::now() + HEAD_START))?;
        let longest = |time: fn(&Spec) -> Duration| clients.iter().map(|client| time(client.spec())).max();
        std::thread::sleep(HEAD_START + longest(|spec| spec.warm_up).unwrap_or_default());
        let instances = format!("{}:", self.workload.model.name());
        let model_cpu = || -> Duration {
            self.workers.iter().map(|worker| cpu::of_threads(worker.pid(), &instances)).sum()
        };
        let (started, meter, model_before) = (Instant::now(), Meter::start(&pids), model_cpu());
        let duration = longest(|spec| spec.duration).unwrap_or_default();
        while let Some(left) = duration.checked_sub(started.elapsed()) {
            std::thread::sleep(SAMPLE_EVERY.min(left));
            memory_mib[1] = memory_mib[1].max(broker.memory_mib()?);
        }
        let (mut cpu, seconds) = (meter.stop(), started.elapsed().as_secs_f64());
        let model_cpu = model_cpu().saturating_sub(model_before);
        let is_open: Vec<bool> =
            clients.iter().map(|client| matches!(client.spec().arrivals, Arrivals::Poisson { .. })).collect();
        let outcomes = clients.into_iter().map(Generator::finish).collect::<Result<Vec<_>>>()?;
        outcomes
            .iter()
            .zip(is_open)
            .filter(|(_, is_open)| *is_open)
            .for_each(|(outcome, _)| warn_of_lag(outcome));
        let broker_cpu = cpu.pop().unwrap_or_default();
        let worker_cpu = cpu.drain(outcomes.len()..).sum();
        Ok(Run { outcomes, client_cpu: cpu, worker_cpu, model_cpu, broker_cpu, seconds, memory_mib })
    }

    /// Lets the broker refuse requests once so many wait in a tier's queue.
    pub(crate) fn limit_queues(&mut self, max_length: u64) -> Result<()> {
        let pattern = format!("^{}\\.request\\.", self.prefix);
        let limits = format!("{{\"max-length\":{max_length}}}");
        self.context.broker.ctl(&["set_policy", "--apply-to", "queues", &self.prefix, &pattern, &limits])?;
        self.policy = Some(self.prefix.clone());
        Ok(())
    }

    /// Stops the workers in order and removes everything from the broker.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.workers.iter().for_each(|worker| worker.terminate());
        for worker in &mut self.workers {
            worker.wait(Duration::from_secs(30)).context("the worker drains")?;
        }
        if let Some(policy) = &self.policy {
            self.context.broker.ctl(&["clear_policy", policy])?;
        }
        let topology = self.config()?.topology;
        let mut all = Topology::shared(&topology);
        all.extend(Topology::model(&topology, self.workload.model.name()));
        self.context.runtime.block_on(remove(&self.context.broker.amqp_url(), &all))
    }
}

async fn remove(url: &str, topology: &Topology) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for queue in &topology.queues {
        channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    for exchange in &topology.exchanges {
        channel.exchange_delete(exchange.name.as_str().into(), ExchangeDeleteOptions::default()).await?;
    }
    Ok(connection.close(200, "OK".into()).await?)
}

fn warn_of_lag(outcome: &Outcome) {
    let lag = outcome.lag_ms(0.99);
    if lag > LAG_LIMIT_MS {
        eprintln!("  warning: a client sent up to {lag:.1} ms late (99 %): part of its latencies is its own");
    }
}
