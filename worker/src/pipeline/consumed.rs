//! Which queues a worker consumes, and how much of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_common::amqp::consumer::{Demand, Subscription};
use millrace_common::amqp::topology::Names;
use millrace_common::directory::Directory;
use tokio::sync::watch;
use tracing::warn;

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::inbound::demand::{Bounds, Lately, Load, Tuner};
use crate::inbound::route::Route;
use crate::load::StartError;

/// Dead letters fetched ahead; each costs one reply.
const DEAD_PREFETCH: u16 = 64;
/// Consumers that one connection carries with ease.
const MANY_CONSUMERS: usize = 100;
/// Each consumer has a channel, and RabbitMQ's `channel_max` is 2,047 unless told otherwise.
const MAX_CONSUMERS: usize = 2_000;

/// All queues are consumed over one connection: one for each model, tier and shard, the dead letters and what all workers are told.
pub(super) fn count_consumers(config: &Config, catalogue: &Catalogue) -> Result<(), StartError> {
    let shards: usize = config.topology.tiers.iter().map(|tier| usize::from(tier.shards)).sum();
    let consumers = catalogue.names().len() * shards + 2;
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

/// What this worker consumes.
pub(super) struct Routes {
    pub(super) routes: Vec<Route>,
    /// The number of each queue's route.
    pub(super) queues: HashMap<String, usize>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) tuned: Vec<Tuned>,
}

pub(super) fn routes(config: &Config, catalogue: &Arc<Catalogue>, names: &Names) -> Routes {
    let (mut routes, mut queues) = (Vec::new(), HashMap::new());
    let (mut subscriptions, mut tuned) = (Vec::new(), Vec::new());
    for model in catalogue.names() {
        for (number, tier) in config.topology.tiers.iter().enumerate() {
            let key = Names::request_key(&model, &tier.name);
            let budget = Duration::from_millis(tier.default_budget_ms);
            let (tuning, demand) = Tuned::new(config, catalogue, &model, number);
            tuned.push(tuning);
            for shard in 0..tier.shards {
                let queue = names.shard_queue(&model, &tier.name, shard);
                subscriptions.push(Subscription::following(queue.as_str(), demand.clone()));
                queues.insert(queue, routes.len());
            }
            let lane_max_bytes = config.scheduling.lane_max_bytes;
            routes.push(Route::new(model.clone(), number, key, budget, lane_max_bytes));
        }
    }
    subscriptions.push(Subscription::fixed(names.dead_inbox(), DEAD_PREFETCH));
    Routes { routes, queues, subscriptions, tuned }
}

/// A route whose consumers follow what the worker can do.
pub(super) struct Tuned {
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

    /// `confirm_us` is how many microseconds the worker's confirms took of late.
    pub(super) fn look(&mut self, directory: &Directory, confirm_us: Option<u64>) {
        let counts = self.catalogue.counts(&self.model);
        let served =
            counts.map_or((0, 0), |counts| (counts.requests_of(self.tier), counts.rows_of(self.tier)));
        let lately = Lately {
            requests: served.0 - self.served.0,
            rows: served.1 - self.served.1,
            slowness: directory.slowness(&self.catalogue.statuses(&self.model)),
            confirm_us,
        };
        self.served = served;
        let loads = loads(&self.catalogue, &self.model, self.tier);
        if let Some(demand) = self.tuner.look(loads, lately) {
            // A worker without consumers is ending.
            let _ = self.demand.send(demand);
        }
    }
}

fn loads(catalogue: &Catalogue, model: &str, tier: usize) -> impl Iterator<Item = Load> {
    catalogue.versions(model).into_iter().map(move |served| {
        let instances = served.serves.iter().filter(|serves| serves.contains(tier)).count() as u64;
        Load { instances, pace: served.pickup.pace() }
    })
}
