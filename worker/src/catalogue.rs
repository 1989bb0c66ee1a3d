//! What this worker serves: models, versions, and the pickup where each version's instances collect work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_common::fleet::ModelStatus;

use crate::inbound::admission::Rules;
use crate::job::Job;
use crate::model::signature::Slot;
use crate::schedule::pickup::Pickup;
use crate::schedule::tier_set::TierSet;

/// One version of a model, loaded.
#[derive(Debug)]
pub struct ServedVersion {
    /// Model name.
    pub model: String,
    /// Version.
    pub version: u64,
    /// What requests must look like.
    pub rules: Rules,
    /// Where its instances collect work.
    pub pickup: Pickup<Job>,
    /// Execution provider of each instance.
    pub instances: Vec<String>,
    /// The tiers that each serves.
    pub serves: Vec<TierSet>,
    /// What it has done.
    pub stats: Stats,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Stats {
    rows: AtomicU64,
    batches: AtomicU64,
    busy_us: AtomicU64,
    by_tier: Vec<Served>,
}

#[derive(Debug, Default)]
struct Served {
    requests: AtomicU64,
    rows: AtomicU64,
}

impl Stats {
    /// Zeroes, for this many tiers.
    pub fn new(tiers: usize) -> Self {
        Self { by_tier: (0..tiers).map(|_| Served::default()).collect(), ..Self::default() }
    }

    /// Counts a finished run.
    pub fn count_run(&self, rows: u64, busy: Duration) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        let busy = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
        self.busy_us.fetch_add(busy, Ordering::Relaxed);
    }

    /// Counts a request of a tier.
    pub fn count_request(&self, tier: usize, rows: u64) {
        self.by_tier[tier].requests.fetch_add(1, Ordering::Relaxed);
        self.by_tier[tier].rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows served of a tier.
    pub fn rows_of(&self, tier: usize) -> u64 {
        self.by_tier[tier].rows.load(Ordering::Relaxed)
    }

    /// Requests served of a tier.
    pub fn requests_of(&self, tier: usize) -> u64 {
        self.by_tier[tier].requests.load(Ordering::Relaxed)
    }
}

impl ServedVersion {
    /// Whether clients may join rows in one request. Not where batches have a budget of elements: nobody could take a request
    /// apart again that spends it many times over.
    fn may_pack(&self) -> bool {
        self.rules.is_shared && self.rules.max_padded_elements.is_none()
    }

    /// For the fleet's directory.
    pub fn status(&self, is_default: bool) -> ModelStatus {
        let signature = &self.rules.signature;
        ModelStatus {
            name: self.model.clone(),
            version: self.version,
            is_default,
            inputs: signature.inputs.iter().map(Slot::spec).collect(),
            outputs: signature.outputs.iter().map(Slot::spec).collect(),
            max_batch_size: self.rules.max_batch_size,
            is_batched: self.rules.is_shared,
            pack_rows: if self.may_pack() { self.pickup.pack_rows() } else { 1 },
            instances: self.instances.clone(),
            rows: self.stats.rows.load(Ordering::Relaxed),
            batches: self.stats.batches.load(Ordering::Relaxed),
            busy_us: self.stats.busy_us.load(Ordering::Relaxed),
            costs_us: self.pickup.costs(),
            ran_us: self.pickup.measured(),
        }
    }
}

/// Everything served, by name and version.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: BTreeMap<String, BTreeMap<u64, Arc<ServedVersion>>>,
}

impl Catalogue {
    /// Adds a version.
    pub fn insert(&mut self, version: Arc<ServedVersion>) {
        self.models.entry(version.model.clone()).or_default().insert(version.version, version);
    }

    /// A model's pinned version, or its newest.
    pub fn find(&self, model: &str, pinned: Option<u64>) -> Option<&Arc<ServedVersion>> {
        let versions = self.models.get(model)?;
        match pinned {
            Some(version) => versions.get(&version),
            None => versions.last_key_value().map(|(_, version)| version),
        }
    }

    /// The models' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// A model's versions, oldest first; the last is the default.
    pub fn versions(&self, model: &str) -> impl Iterator<Item = &Arc<ServedVersion>> {
        self.models.get(model).into_iter().flat_map(BTreeMap::values)
    }

    /// The status of a model's versions.
    pub fn statuses(&self, model: &str) -> Vec<ModelStatus> {
        let statuses = self.all().filter(|(served, _)| served.model == model);
        statuses.map(|(served, is_default)| served.status(is_default)).collect()
    }

    /// Every version of every model, and whether it is its model's default.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<ServedVersion>, bool)> {
        self.models.values().flat_map(|versions| {
            let newest = versions.last_key_value().map(|(version, _)| *version);
            versions.values().map(move |served| (served, Some(served.version) == newest))
        })
    }
}
