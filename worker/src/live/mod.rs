//! What changes while the worker runs: by its configuration file ([`mod@file`]) and by the fleet's live switches, which go before it.

pub mod file;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_common::switches::{Entry, Feature, Follower, Forced, Setting};
use millrace_common::telemetry::logs::Filter;
use millrace_common::tier::Tier;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::catalogue::{Catalogue, ServedVersion};
use crate::config::Config;
use crate::schedule::tier_set::TierSet;

/// `[features]`: work that a fleet can go without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// Clients join rows in one request.
    pub packing: bool,
    /// Clients answer from what they keep.
    pub cache: bool,
    /// Small replies to one client leave in one message.
    pub bundles: bool,
    /// A line for each request.
    pub access_log: bool,
}

/// What may change while the worker runs. All else is for its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunables {
    /// Of the tiers, highest first.
    weights: Vec<u32>,
    max_shares: Vec<f64>,
    features: Features,
    log_filter: String,
}

impl Tunables {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        let tiers = &config.topology.tiers;
        Self {
            weights: tiers.iter().map(|tier| tier.weight).collect(),
            max_shares: tiers.iter().map(|tier| tier.max_share).collect(),
            features: config.features,
            log_filter: config.logs.filter.clone(),
        }
    }
}

impl Features {
    fn of(&mut self, feature: Feature) -> &mut bool {
        match feature {
            Feature::Packing => &mut self.packing,
            Feature::Cache => &mut self.cache,
            Feature::Bundles => &mut self.bundles,
            Feature::AccessLog => &mut self.access_log,
        }
    }
}

/// What holds now, and who must know of it.
#[derive(Debug)]
pub struct Live {
    tiers: Vec<Tier>,
    catalogue: Arc<Catalogue>,
    filter: Filter,
    features: [AtomicBool; Feature::ALL.len()],
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    configured: Tunables,
    switches: Arc<Vec<Entry>>,
    /// The filter in use; setting it again costs a look at every log line there is.
    filter: Option<(String, Option<String>)>,
}

/// What is switched of a model.
#[derive(Clone, Copy, Debug)]
struct OfModel {
    breaker: Option<Forced>,
    degraded: TierSet,
}

impl Live {
    /// As configured; what the catalogue holds now and later follows.
    pub fn new(config: &Config, catalogue: Arc<Catalogue>, filter: Filter) -> Self {
        let configured = Tunables::of(config);
        let features = Feature::ALL.map(|feature| AtomicBool::new(*configured.features.clone().of(feature)));
        Self {
            tiers: config.topology.tiers.iter().map(|tier| tier.name.clone()).collect(),
            catalogue,
            filter,
            features,
            state: Mutex::new(State { configured, switches: Arc::default(), filter: None }),
            changed: Notify::new(),
        }
    }

    /// Whether a feature is on.
    pub fn has(&self, feature: Feature) -> bool {
        self.features[feature as usize].load(Ordering::Relaxed)
    }

    /// The switches that hold for this worker, values by name.
    pub fn switches(&self) -> BTreeMap<String, String> {
        let switches = Arc::clone(&self.lock().switches);
        let own = switches.iter().filter(|entry| self.concerns(&entry.setting));
        own.map(|entry| (entry.setting.name(), entry.setting.value())).collect()
    }

    /// Completes when something has changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes another configuration.
    pub fn configure(&self, tunables: Tunables) {
        self.lock().configured = tunables;
        self.refresh();
    }

    /// Does as the switches say, as they change, for ever.
    pub async fn follow(&self, follower: &Follower) {
        let mut hold = follower.hold();
        loop {
            let switches = Arc::clone(&hold.borrow_and_update());
            self.switch(switches);
            if hold.changed().await.is_err() {
                error!("the switches are not followed any more; restart the worker");
                return std::future::pending().await;
            }
        }
    }

    /// Does as these switches say, and as no others do.
    pub fn switch(&self, switches: Arc<Vec<Entry>>) {
        for setting in switches.iter().map(|entry| &entry.setting).filter(|setting| !self.concerns(setting)) {
            if let Some(tier) = setting.tier().filter(|tier| !self.tiers.contains(tier)) {
                warn!(switch = %setting, %tier, "there is no such tier here");
            }
        }
        self.lock().switches = switches;
        self.refresh();
        self.changed.notify_one();
    }

    /// Sees to it that everything is as it should be now. A version that comes later needs it again.
    pub fn refresh(&self) {
        let mut state = self.lock();
        let mut tunables = state.configured.clone();
        let mut filter = None;
        for setting in state.switches.iter().map(|entry| &entry.setting) {
            match setting {
                Setting::Weight(tier, weight) => {
                    self.number(tier).into_iter().for_each(|tier| tunables.weights[tier] = *weight);
                }
                Setting::MaxShare(tier, share) => {
                    self.number(tier).into_iter().for_each(|tier| tunables.max_shares[tier] = *share);
                }
                Setting::Feature(feature, is_on) => *tunables.features.of(*feature) = *is_on,
                Setting::LogFilter(text) => filter = Some(text.clone()),
                Setting::Breaker(..) | Setting::Degraded(..) => {}
            }
        }
        for feature in Feature::ALL {
            self.features[feature as usize].store(*tunables.features.of(feature), Ordering::Relaxed);
        }
        for (served, _) in self.catalogue.all() {
            tune(&served, &tunables, self.of_model(&state.switches, &served.model));
        }
        let filter = Some((tunables.log_filter, filter));
        if state.filter != filter {
            if let Some((configured, switched)) = &filter {
                self.filter.set(configured, switched.as_deref());
            }
            state.filter = filter;
        }
    }

    fn of_model(&self, switches: &[Entry], model: &str) -> OfModel {
        let mut found = OfModel { breaker: None, degraded: TierSet::NONE };
        for setting in
            switches.iter().map(|entry| &entry.setting).filter(|setting| setting.model() == Some(model))
        {
            match setting {
                Setting::Breaker(_, forced) => found.breaker = Some(*forced),
                Setting::Degraded(_, tier, true) => {
                    found.degraded = found.degraded.or(TierSet::of(self.number(tier)));
                }
                _ => {}
            }
        }
        found
    }

    fn number(&self, tier: &Tier) -> Option<usize> {
        self.tiers.iter().position(|known| known == tier)
    }

    fn concerns(&self, setting: &Setting) -> bool {
        setting.tier().is_none_or(|tier| self.tiers.contains(tier))
            && setting.model().is_none_or(|model| self.catalogue.find(model, None).is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Single assignments; a panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tune(served: &ServedVersion, tunables: &Tunables, of_model: OfModel) {
    served.pickup.retune(&tunables.weights, &tunables.max_shares, served.instances.len());
    served.degrade(of_model.degraded);
    let is_news = served.breaker().force(of_model.breaker, Instant::now());
    if is_news {
        let (model, version, forced) = (&served.model, served.version, of_model.breaker.map(Forced::as_str));
        warn!(%model, version, ?forced, "circuit breaker switched");
    }
}
