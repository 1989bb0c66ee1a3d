//! Joins the rooms, runs them, and stops them in the order of flow.

mod consumed;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_common::amqp::connection::{ConnectError, Connector, wait_up};
use millrace_common::amqp::consumer::{ConsumerGroup, Subscription};
use millrace_common::amqp::fetcher::Fetcher;
use millrace_common::amqp::inspect::missing;
use millrace_common::amqp::message::{now_ms, since_epoch};
use millrace_common::amqp::publisher::{Publisher, PublisherOptions};
use millrace_common::amqp::topology::{ApplyError, QueueKind, Topology, apply};
use millrace_common::directory::Directory;
use millrace_common::fleet::ANNOUNCE_EVERY;
use millrace_common::lifecycle::Lifecycle;
use millrace_common::switches::Follower;
use millrace_common::telemetry::logs::Filter;
use tokio::sync::{Notify, Semaphore, mpsc};
use tracing::{error, info, warn};

use self::consumed::{Routes, count_consumers, routes};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::inbound::cancelled::Cancelled;
use crate::inbound::clock::Clocks;
use crate::inbound::intake::{DEAD_BUDGET_UNITS, Intake};
use crate::inbound::solo::{self, Solo};
use crate::job::{Settlement, Verdict};
use crate::live::{Live, file};
use crate::load::{Loaded, Ready, StartError};
use crate::model::instance::{Around, Failure};
use crate::model::instances::Instances;
use crate::outbound::dispatch::Dispatch;
use crate::outbound::reaper;
use crate::outbound::settle::Settler;
use crate::status::Announcer;
use crate::swap::Swapper;

/// Batches of verdicts between instances and settlement. Small: instances should feel a slow broker.
const SETTLEMENTS: usize = 64;
/// A suspect that is being fetched is waited for, but not for long.
const SUSPECTS_STOP_WITHIN: Duration = Duration::from_millis(500);
/// The last part of the grace period, in which connections are closed; one that is cut off does not answer.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// How long a worker that starts waits for what is switched; without a stream to read it starts all the same.
const SWITCHES_WITHIN: Duration = Duration::from_secs(2);
/// Messages of the control exchange fetched ahead; each is quickly done with.
const CONTROL_PREFETCH: u16 = 100;

/// A worker that consumes.
pub struct Worker {
    config: Config,
    directory: Arc<Directory>,
    intake: Arc<Intake>,
    consumers: ConsumerGroup,
    publisher: Publisher,
    publishing: Lifecycle,
    tasks: Lifecycle,
    suspects: Lifecycle,
    swaps: Lifecycle,
    instances: Arc<Instances>,
    announcer: Arc<Announcer>,
    settlements: mpsc::Sender<Vec<Settlement>>,
}

/// Starts consuming: declares the topology if configured to, starts instances, settlement, status and intake.
///
/// What may change while it runs follows `file`, where the configuration came from one, and the fleet's switches.
///
/// # Errors
/// [`StartError`].
pub async fn start(
    config: Config,
    loaded: Loaded,
    file: Option<PathBuf>,
    filter: Filter,
) -> Result<Worker, StartError> {
    let connector = Connector::new(&config.broker, &config.worker.name)?;
    let own_user = connector.addresses()[0].user().to_owned();
    count_consumers(&config, &loaded.catalogue)?;
    declare(&config, &connector, &loaded.catalogue).await?;
    let tasks = Lifecycle::new();
    let publishing = Lifecycle::new();
    let publisher = Publisher::spawn(connector.clone(), "replies", publisher_options(&config), &publishing);
    let live = live((&config, file), &loaded.catalogue, filter, &connector, &tasks).await;
    let directory = Arc::new(Directory::listen(connector.clone(), &config.topology));
    let (settlements, incoming) = mpsc::channel(SETTLEMENTS);
    let names = config.topology.names();
    let dispatch = Dispatch::new(&names, &config.topology.retry_delays_ms, &config.worker.name, &own_user);
    let refused_retry = Duration::from_secs(config.replies.refused_retry_seconds);
    let max_bytes = config.replies.max_in_flight_bytes;
    let settler = Settler::new(publisher.clone(), dispatch, refused_retry, max_bytes, Arc::clone(&live));
    let (readers, answered, confirms) = (settler.readers(), settler.answered(), settler.confirms());
    tasks.spawn(settler.run(incoming));
    let cancelled = Arc::new(Cancelled::default());
    let instances = Arc::new(Instances::default());
    let around = Around {
        catalogue: Arc::clone(&loaded.catalogue),
        cancelled: Arc::clone(&cancelled),
        readers: Arc::clone(&readers),
        max_reply_bytes: config.limits.max_body_bytes,
        settlements: settlements.clone(),
        live: Arc::clone(&live),
    };
    for Ready { served, backends } in loaded.ready {
        instances.start(&served, backends, &around)?;
    }
    live.refresh();
    let swaps = Lifecycle::new();
    let swapper = Swapper::new(loaded.loader, loaded.found, Arc::clone(&instances), around, swaps.clone());
    swaps.spawn(swapper.run());
    let solo_names = names.clone();
    let control_queue = format!("{}.{}", names.control_exchange(), uuid::Uuid::now_v7().simple());
    let control = Topology::control_listener(&config.topology, &control_queue);
    let asked = Arc::new(Notify::new());
    let Routes { routes, queues, mut subscriptions, mut tuned } = routes(&config, &loaded.catalogue, &names);
    let intake = Arc::new(Intake {
        routes,
        queues,
        counts_redeliveries: config.topology.queue_type == QueueKind::Quorum,
        catalogue: Arc::clone(&loaded.catalogue),
        instances: Arc::clone(&instances),
        directory: Arc::clone(&directory),
        limits: config.limits.into(),
        gateway_users: config.worker.gateway_users.clone(),
        own_user,
        settlements: settlements.clone(),
        verdict_on_dead: Box::new(move |properties| reaper::verdict(properties, &names)),
        dead_budget: Arc::new(Semaphore::new(DEAD_BUDGET_UNITS as usize)),
        solo: Solo::default(),
        control_queue: control_queue.clone(),
        asked: Arc::clone(&asked),
        cancelled,
        answered,
        clocks: Mutex::new(Clocks::new(Instant::now(), since_epoch())),
    });
    let fetcher = Fetcher::spawn(connector.clone(), "suspects", &publishing);
    subscriptions.push(Subscription::fixed(control_queue, CONTROL_PREFETCH));
    let consumers = ConsumerGroup::spawn(connector, "requests", control, subscriptions, Arc::clone(&intake));
    let suspects = Lifecycle::new();
    let solo_queues =
        loaded.catalogue.names().iter().map(|model| solo_names.solo_queue(model).into()).collect();
    let running = solo::run(fetcher, solo_queues, Arc::clone(&intake), consumers.state(), suspects.clone());
    suspects.spawn(running);
    let announcer = Arc::new(Announcer {
        worker: config.worker.name.clone(),
        started_ms: now_ms(),
        is_draining: AtomicBool::new(false),
        consuming: consumers.state(),
        catalogue: Arc::clone(&loaded.catalogue),
        topology: config.topology.clone(),
        publisher: publisher.clone(),
        live,
        asked,
        is_too_long: AtomicBool::new(false),
    });
    let (looking, stopping) = (Arc::clone(&directory), tasks.clone());
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(ANNOUNCE_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let confirm_us = confirms.take_mean_us();
                    tuned.iter_mut().for_each(|tuned| tuned.look(&looking, confirm_us));
                }
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
        directory,
        intake,
        consumers,
        publisher,
        publishing,
        tasks,
        suspects,
        swaps,
        instances,
        announcer,
        settlements,
    })
}

/// What follows the configuration's file and the switches, as far as they are known now.
async fn live(
    (config, file): (&Config, Option<PathBuf>),
    catalogue: &Arc<Catalogue>,
    filter: Filter,
    connector: &Connector,
    tasks: &Lifecycle,
) -> Arc<Live> {
    let live = Arc::new(Live::new(config, Arc::clone(catalogue), filter));
    let follower = Follower::follow(connector.clone(), &config.topology, tasks);
    follower.settled(SWITCHES_WITHIN).await;
    live.switch(Arc::clone(&follower.hold().borrow()));
    let (stop, following) = (tasks.clone(), Arc::clone(&live));
    tasks.spawn(async move {
        tokio::select! {
            () = following.follow(&follower) => {}
            () = stop.stopping() => {}
        }
    });
    if let Some(file) = file {
        let watching = file::watch(file, Arc::new(config.clone()), Arc::clone(&live));
        let stop = tasks.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = watching => {}
                () = stop.stopping() => {}
            }
        });
    }
    live
}

async fn declare(config: &Config, connector: &Connector, catalogue: &Catalogue) -> Result<(), StartError> {
    if !config.topology.declare {
        return check_shared(config, connector).await;
    }
    let mut topology = Topology::shared(&config.topology);
    for model in catalogue.names() {
        topology.extend(Topology::model(&config.topology, &model));
    }
    // The broker may still be starting: in a compose stack both start together.
    let patience = Duration::from_secs(60);
    let started = Instant::now();
    loop {
        match apply(connector, &topology).await {
            Err(error) if !matches!(error, ApplyError::Declare(_)) && started.elapsed() < patience => {
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

impl Worker {
    /// Waits until requests are consumed and replies can be sent.
    ///
    /// # Errors
    /// The last connect failure when that takes longer than `timeout`.
    pub async fn ready(&self, timeout: Duration) -> Result<(), Option<ConnectError>> {
        wait_up(&mut self.consumers.state(), timeout).await?;
        wait_up(&mut self.publisher.state(), timeout).await
    }

    /// Stops runs that take too long; returns why an instance cannot go on, if so.
    pub fn look_after_instances(&self) -> Option<Failure> {
        self.instances.look_after(Instant::now())
    }

    /// Stops in flow order: not ready, consumers cancelled, unstarted work given back, running batches finished,
    /// answered and acknowledged. Returns whether everything was done within the grace period.
    pub async fn drain(self) -> bool {
        let end = tokio::time::Instant::now() + self.config.grace();
        let deadline = end - CLOSED_WITHIN.min(self.config.grace() / 4);
        self.announcer.is_draining.store(true, Ordering::Relaxed);
        self.consumers.stop_consuming();
        // Before the pickups close: what it would fetch after, given back each time, would count as runs that ended the process.
        self.suspects.stop();
        self.swaps.stop();
        self.suspects.stopped(SUSPECTS_STOP_WITHIN).await;
        let unstarted = self.instances.close().into_iter().map(|job| (job.duty, Verdict::GiveBack));
        let unstarted: Vec<_> = unstarted.collect();
        info!(unstarted = unstarted.len(), "draining: consumers cancelled, unstarted work goes back");
        let _ = tokio::time::timeout_at(deadline, self.settlements.send(unstarted)).await;
        self.announcer.announce(&self.intake.routes).await;
        let instances = Arc::clone(&self.instances);
        let joining = tokio::task::spawn_blocking(move || instances.join());
        let instances_ended = tokio::time::timeout_at(deadline, joining).await.is_ok();
        // What is given back after the pickups closed still passes through intake; its sender must go too.
        self.tasks.stop();
        drop(self.settlements);
        let held = self.intake.held();
        let settled = tokio::time::timeout_at(deadline, held).await.is_ok();
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        self.publishing.stop();
        let closing = tokio::time::timeout(left, self.directory.close());
        // A model that is being loaded uses the library, which must not go before it does.
        let (_, unpublished, _, _) = tokio::join!(
            self.consumers.close(left),
            self.publishing.stopped(left),
            closing,
            self.swaps.stopped(left)
        );
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
