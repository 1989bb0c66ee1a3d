//! Joins the rooms, runs them, and stops them in the order of flow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_common::amqp::connection::{ConnectError, Connector, wait_up};
use millrace_common::amqp::consumer::{ConsumerGroup, Demand, Subscription};
use millrace_common::amqp::inspect::missing;
use millrace_common::amqp::message::now_ms;
use millrace_common::amqp::publisher::{Publisher, PublisherOptions};
use millrace_common::amqp::topology::{ApplyError, Names, Topology, apply};
use millrace_common::directory::Directory;
use millrace_common::fleet::ANNOUNCE_EVERY;
use millrace_common::lifecycle::Lifecycle;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{error, info, warn};

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::inbound::clock::Clocks;
use crate::inbound::demand::{Bounds, Load, Tuner};
use crate::inbound::intake::{DEAD_BUDGET_UNITS, Intake, Route};
use crate::job::{Settlement, Verdict};
use crate::load::{Loaded, StartError};
use crate::model::instance;
use crate::outbound::dispatch::Dispatch;
use crate::outbound::reaper;
use crate::outbound::settle::Settler;
use crate::status::Announcer;

/// Batches of verdicts between instances and settlement. Small: instances should feel a slow broker.
const SETTLEMENTS: usize = 64;
/// Dead letters fetched ahead; each costs one reply.
const DEAD_PREFETCH: u16 = 64;

/// Consumers that one connection carries with ease.
const MANY_CONSUMERS: usize = 100;
/// Each consumer has a channel, and RabbitMQ's `channel_max` is 2,047 unless told otherwise.
const MAX_CONSUMERS: usize = 2_000;

/// A worker that consumes.
pub struct Worker {
    config: Config,
    catalogue: Arc<Catalogue>,
    directory: Arc<Directory>,
    intake: Arc<Intake>,
    consumers: ConsumerGroup,
    publisher: Publisher,
    publishing: Lifecycle,
    tasks: Lifecycle,
    instances: Vec<JoinHandle<()>>,
    announcer: Arc<Announcer>,
    settlements: mpsc::Sender<Vec<Settlement>>,
}

/// Starts consuming: declares the topology if configured to, starts instances, settlement, status and intake.
///
/// # Errors
/// [`StartError`].
pub async fn start(config: Config, loaded: Loaded) -> Result<Worker, StartError> {
    let connector = Connector::new(&config.broker, &config.worker.name)?;
    let own_user = connector.addresses()[0].user().to_owned();
    count_consumers(&config, &loaded.catalogue)?;
    declare(&config, &connector, &loaded.catalogue).await?;
    let tasks = Lifecycle::new();
    let publishing = Lifecycle::new();
    let publisher = Publisher::spawn(connector.clone(), "replies", publisher_options(&config), &publishing);
    let directory = Arc::new(Directory::listen(connector.clone(), &config.topology));
    let (settlements, incoming) = mpsc::channel(SETTLEMENTS);
    let names = config.topology.names();
    let dispatch = Dispatch::new(&names, &config.topology.retry_delays_ms, &config.worker.name, &own_user);
    let refused_retry = Duration::from_secs(config.replies.refused_retry_seconds);
    let max_bytes = config.replies.max_in_flight_bytes;
    tasks.spawn(Settler::new(publisher.clone(), dispatch, refused_retry, max_bytes).run(incoming));
    let mut instances = Vec::new();
    for (served, serves, backend) in loaded.backends {
        let max_reply_bytes = config.limits.max_body_bytes;
        instances.push(instance::spawn(backend, serves, served, max_reply_bytes, settlements.clone())?);
    }
    let Routes { routes, queues, subscriptions, mut tuned } = routes(&config, &loaded.catalogue, &names);
    let intake = Arc::new(Intake {
        routes,
        queues,
        catalogue: Arc::clone(&loaded.catalogue),
        directory: Arc::clone(&directory),
        limits: config.limits.into(),
        gateway_users: config.worker.gateway_users.clone(),
        own_user,
        settlements: settlements.clone(),
        verdict_on_dead: reaper::verdict,
        dead_budget: Arc::new(Semaphore::new(DEAD_BUDGET_UNITS as usize)),
        sequence: AtomicU64::new(0),
        clocks: Mutex::new(Clocks::new(Instant::now(), now_ms())),
    });
    let consumers =
        ConsumerGroup::spawn(connector, "requests", Topology::default(), subscriptions, Arc::clone(&intake));
    let announcer = Arc::new(Announcer {
        worker: config.worker.name.clone(),
        started_ms: now_ms(),
        is_draining: AtomicBool::new(false),
        consuming: consumers.state(),
        catalogue: Arc::clone(&loaded.catalogue),
        topology: config.topology.clone(),
        publisher: publisher.clone(),
    });
    let (looking, stopping) = (Arc::clone(&directory), tasks.clone());
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(ANNOUNCE_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => tuned.iter_mut().for_each(|tuned| tuned.look(&looking)),
                () = stopping.stopping() => return,
            }
        }
    });
    let (telling, stopping, lanes) = (Arc::clone(&announcer), tasks.clone(), Arc::clone(&intake));
    tasks.spawn(async move {
        tokio::select! {
            () = telling.run(&lanes.routes) => {}
            () = stopping.stopping() => {}
        }
    });
    Ok(Worker {
        config,
        catalogue: loaded.catalogue,
        directory,
        intake,
        consumers,
        publisher,
        publishing,
        tasks,
        instances,
        announcer,
        settlements,
    })
}

/// All queues are consumed over one connection: one for each model, tier and shard, and the dead letters.
fn count_consumers(config: &Config, catalogue: &Catalogue) -> Result<(), StartError> {
    let shards: usize = config.topology.tiers.iter().map(|tier| usize::from(tier.shards)).sum();
    let consumers = catalogue.names().count() * shards + 1;
    if consumers > MAX_CONSUMERS {
        return Err(StartError::Consumers { consumers, most: MAX_CONSUMERS });
    }
    if consumers > MANY_CONSUMERS {
        warn!(
            consumers,
            "many queues for one connection, which slows it: serve fewer models in each worker (models.serve), or give tiers fewer \
             shards (topology.tiers)"
        );
    }
    Ok(())
}

async fn declare(config: &Config, connector: &Connector, catalogue: &Catalogue) -> Result<(), StartError> {
    if !config.topology.declare {
        return check_shared(config, connector).await;
    }
    let mut topology = Topology::shared(&config.topology);
    for model in catalogue.names() {
        topology.extend(Topology::model(&config.topology, model));
    }
    // The broker may still be starting: in a compose stack both start together.
    let patience = Duration::from_secs(60);
    let started = Instant::now();
    loop {
        match apply(connector, &topology).await {
            Err(ApplyError::Connect(error)) if started.elapsed() < patience => {
                warn!(%error, "waiting for the broker");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Without its exchanges a worker would consume and then find that it cannot pass anything on.
async fn check_shared(config: &Config, connector: &Connector) -> Result<(), StartError> {
    match missing(connector, &Topology::shared(&config.topology)).await {
        Ok(absent) if absent.is_empty() => Ok(()),
        Ok(absent) => Err(StartError::Missing(absent.join(", "))),
        Err(error) => {
            warn!(%error, "cannot look whether the topology is complete");
            Ok(())
        }
    }
}

fn publisher_options(config: &Config) -> PublisherOptions {
    PublisherOptions {
        max_in_flight: config.replies.max_in_flight,
        max_in_flight_bytes: config.replies.max_in_flight_bytes,
        confirm_timeout: Duration::from_secs(config.replies.confirm_timeout_seconds),
    }
}

/// What this worker consumes.
struct Routes {
    routes: Vec<Route>,
    /// The number of each queue's route.
    queues: HashMap<String, usize>,
    subscriptions: Vec<Subscription>,
    tuned: Vec<Tuned>,
}

fn routes(config: &Config, catalogue: &Arc<Catalogue>, names: &Names) -> Routes {
    let (mut routes, mut queues) = (Vec::new(), HashMap::new());
    let (mut subscriptions, mut tuned) = (Vec::new(), Vec::new());
    for model in catalogue.names() {
        for (number, tier) in config.topology.tiers.iter().enumerate() {
            let key = Names::request_key(model, &tier.name);
            let budget = Duration::from_millis(tier.default_budget_ms);
            let (tuning, demand) = Tuned::new(config, catalogue, model, number);
            tuned.push(tuning);
            for shard in 0..tier.shards {
                let queue = names.shard_queue(model, &tier.name, shard);
                subscriptions.push(Subscription::following(queue.as_str(), demand.clone()));
                queues.insert(queue, routes.len());
            }
            let lane_max_bytes = config.scheduling.lane_max_bytes;
            routes.push(Route::new(model.to_owned(), number, key, budget, lane_max_bytes));
        }
    }
    subscriptions.push(Subscription::fixed(names.dead_inbox(), DEAD_PREFETCH));
    Routes { routes, queues, subscriptions, tuned }
}

/// A route whose consumers follow what the worker can do.
struct Tuned {
    catalogue: Arc<Catalogue>,
    model: String,
    tier: usize,
    tuner: Tuner,
    /// Requests and rows served at the last look.
    served: (u64, u64),
    demand: watch::Sender<Demand>,
}

impl Tuned {
    fn new(
        config: &Config,
        catalogue: &Arc<Catalogue>,
        model: &str,
        tier: usize,
    ) -> (Self, watch::Receiver<Demand>) {
        let bounds = Bounds {
            extra: config.scheduling.prefetch_extra,
            wait_us: u64::from(config.scheduling.prefetch_wait_ms) * 1000,
            shards: config.topology.tiers[tier].shards,
        };
        let tuner = Tuner::new(bounds, loads(catalogue, model, tier));
        let (demand, following) = watch::channel(tuner.demand());
        let (catalogue, model) = (Arc::clone(catalogue), model.to_owned());
        (Self { catalogue, model, tier, tuner, served: (0, 0), demand }, following)
    }

    fn look(&mut self, directory: &Directory) {
        let versions = || self.catalogue.versions(&self.model).map(|served| &served.stats);
        let served = versions().fold((0, 0), |(requests, rows), stats| {
            (requests + stats.requests_of(self.tier), rows + stats.rows_of(self.tier))
        });
        let lately = (served.0 - self.served.0, served.1 - self.served.1);
        self.served = served;
        let slowness = directory.slowness(&self.catalogue.statuses(&self.model));
        let loads = loads(&self.catalogue, &self.model, self.tier);
        if let Some(demand) = self.tuner.look(loads, lately, slowness) {
            // A worker without consumers is ending.
            let _ = self.demand.send(demand);
        }
    }
}

fn loads(catalogue: &Catalogue, model: &str, tier: usize) -> impl Iterator<Item = Load> {
    catalogue.versions(model).map(move |served| {
        let instances = served.serves.iter().filter(|serves| serves.contains(tier)).count() as u64;
        Load { instances, pace: served.pickup.pace() }
    })
}

impl Worker {
    /// Waits until requests are consumed and replies can be sent.
    ///
    /// # Errors
    /// The last connect failure when that takes longer than `timeout`.
    pub async fn ready(&self, timeout: Duration) -> Result<(), Option<ConnectError>> {
        wait_up(&mut self.consumers.state(), timeout).await?;
        wait_up(&mut self.publisher.state(), timeout).await
    }

    /// Whether an instance thread has ended although nobody stopped it: it panicked, and its requests with it.
    pub fn has_dead_instance(&self) -> bool {
        self.instances.iter().any(JoinHandle::is_finished)
    }

    /// Stops in flow order: not ready, consumers cancelled, unstarted work given back, running batches finished,
    /// answered and acknowledged. Returns whether everything was done within the grace period.
    pub async fn drain(mut self) -> bool {
        let deadline = tokio::time::Instant::now() + self.config.grace();
        self.announcer.is_draining.store(true, Ordering::Relaxed);
        self.consumers.stop_consuming();
        let mut unstarted = Vec::new();
        for (served, _) in self.catalogue.all() {
            unstarted.extend(served.pickup.close().into_iter().map(|job| (job.duty, Verdict::GiveBack)));
        }
        info!(unstarted = unstarted.len(), "draining: consumers cancelled, unstarted work goes back");
        let _ = tokio::time::timeout_at(deadline, self.settlements.send(unstarted)).await;
        self.announcer.announce(&self.intake.routes).await;
        let threads = std::mem::take(&mut self.instances);
        let joining = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count()
        });
        let instances_ended = tokio::time::timeout_at(deadline, joining).await.is_ok();
        // What is given back after the pickups closed still passes through intake; its sender must go too.
        self.tasks.stop();
        drop(self.settlements);
        let held = self.intake.held();
        let settled = tokio::time::timeout_at(deadline, held).await.is_ok();
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        self.consumers.close(left.max(Duration::from_secs(1))).await;
        self.publishing.stop();
        let unpublished = self.publishing.stopped(left.max(Duration::from_secs(1))).await;
        self.directory.close().await;
        let is_clean = instances_ended && settled && unpublished == 0;
        if !is_clean {
            error!(
                instances_ended,
                settled, unpublished, "the grace period is over; what is left will be delivered again"
            );
        }
        is_clean
    }
}
