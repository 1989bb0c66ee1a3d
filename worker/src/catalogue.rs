//! What this worker serves: models, versions, and the pickup where each version's instances collect work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use millrace_common::fleet::ModelStatus;
use tracing::warn;

use crate::guard::breaker::{Breaker, Transition};
use crate::guard::ladder::{Ladder, Reason};
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
    /// How long a run may take before it is stopped.
    pub inference_timeout: Duration,
    /// Execution provider of each instance.
    pub instances: Vec<String>,
    /// The tiers that each serves.
    pub serves: Vec<TierSet>,
    /// What it has done.
    pub stats: Stats,
    /// Leaves it alone while it fails.
    pub breaker: Mutex<Breaker>,
    /// What its requests get then.
    pub ladder: Ladder,
    /// The tiers whose requests an operator sends down the ladder.
    pub degraded: Mutex<TierSet>,
}

/// Counters of a version since it was loaded.
#[derive(Debug)]
pub struct Stats {
    rows: AtomicU64,
    batches: AtomicU64,
    busy_us: AtomicU64,
    by_tier: Arc<TierCounts>,
}

/// Counters of a model's tiers since the start, whichever of its versions served them.
#[derive(Debug)]
pub struct TierCounts(Vec<Served>);

#[derive(Debug, Default)]
struct Served {
    requests: AtomicU64,
    rows: AtomicU64,
}

impl TierCounts {
    /// Zeroes, for this many tiers.
    pub fn new(tiers: usize) -> Self {
        Self((0..tiers).map(|_| Served::default()).collect())
    }

    /// Rows served of a tier.
    pub fn rows_of(&self, tier: usize) -> u64 {
        self.0[tier].rows.load(Ordering::Relaxed)
    }

    /// Requests served of a tier.
    pub fn requests_of(&self, tier: usize) -> u64 {
        self.0[tier].requests.load(Ordering::Relaxed)
    }
}

impl Stats {
    /// Zeroes of a version of the model whose tiers these are.
    pub fn new(by_tier: Arc<TierCounts>) -> Self {
        Self { rows: AtomicU64::new(0), batches: AtomicU64::new(0), busy_us: AtomicU64::new(0), by_tier }
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
        self.by_tier.0[tier].requests.fetch_add(1, Ordering::Relaxed);
        self.by_tier.0[tier].rows.fetch_add(rows, Ordering::Relaxed);
    }
}

impl ServedVersion {
    /// Its circuit breaker.
    pub fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Single assignments; a panic cannot leave it half changed.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the requests of these tiers, and of no others, down the ladder.
    pub fn degrade(&self, tiers: TierSet) {
        *self.degraded.lock().unwrap_or_else(PoisonError::into_inner) = tiers;
    }

    /// Whether a request's tier is sent down the ladder, on which it is not yet.
    pub fn is_degraded(&self, job: &Job) -> bool {
        let degraded = *self.degraded.lock().unwrap_or_else(PoisonError::into_inner);
        degraded.contains(job.tier) && job.duty.descent.is_none()
    }

    /// Why a request is not run now, and when to try again. The breaker does not keep suspects, unless an operator wants it so: that they
    /// run alone says enough.
    pub fn pause(&self, job: &Job, now: Instant) -> Option<(Reason, Duration)> {
        let breaker = self.breaker();
        if self.is_degraded(job) {
            return Some((Reason::Switched, breaker.wait()));
        }
        let is_kept = !job.duty.is_solo || breaker.is_forced_open();
        breaker.pause(now).filter(|_| is_kept).map(|pause| (Reason::CircuitOpen, pause))
    }

    /// Logs what the breaker did, if it did anything.
    pub fn tell(&self, transition: Option<Transition>) {
        if let Some(Transition { from, to, failure_rate, slow_call_rate }) = transition {
            let (model, version) = (&self.model, self.version);
            warn!(%model, version, %from, %to, failure_rate, slow_call_rate, "circuit breaker");
        }
    }

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
            breaker: self.breaker().status().to_owned(),
        }
    }
}

type Models = BTreeMap<String, BTreeMap<u64, Arc<ServedVersion>>>;

/// Everything served, by name and version. Versions come and go while it is read; which models there are stays.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: RwLock<Models>,
    /// What keeps a model's newest files from being served.
    problems: Mutex<BTreeMap<String, String>>,
    sequence: AtomicU64,
}

impl Catalogue {
    /// A number that no other request has, for one that runs alone.
    pub fn sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts versions in, each in the place of one of its number, and takes others of `model` out, in one step. Returns those that are
    /// not served any more.
    pub fn change(
        &self,
        model: &str,
        entering: impl IntoIterator<Item = Arc<ServedVersion>>,
        leaving: &BTreeSet<u64>,
    ) -> Vec<Arc<ServedVersion>> {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let versions = models.entry(model.to_owned()).or_default();
        let mut gone: Vec<_> = leaving.iter().filter_map(|version| versions.remove(version)).collect();
        gone.extend(entering.into_iter().filter_map(|served| versions.insert(served.version, served)));
        gone
    }

    /// A model's pinned version, or its newest.
    pub fn find(&self, model: &str, pinned: Option<u64>) -> Option<Arc<ServedVersion>> {
        let models = self.read();
        let versions = models.get(model)?;
        match pinned {
            Some(version) => versions.get(&version),
            None => versions.last_key_value().map(|(_, version)| version),
        }
        .cloned()
    }

    /// Whether this very version, loaded from these very files, is served.
    pub fn has(&self, served: &Arc<ServedVersion>) -> bool {
        self.find(&served.model, Some(served.version)).is_some_and(|current| Arc::ptr_eq(&current, served))
    }

    /// The models' names.
    pub fn names(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }

    /// A model's versions, oldest first; the last is the default.
    pub fn versions(&self, model: &str) -> Vec<Arc<ServedVersion>> {
        self.read().get(model).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// What has been served of a model's tiers.
    pub fn counts(&self, model: &str) -> Option<Arc<TierCounts>> {
        self.find(model, None).map(|served| Arc::clone(&served.stats.by_tier))
    }

    /// The status of a model's versions.
    pub fn statuses(&self, model: &str) -> Vec<ModelStatus> {
        let all = self.all().into_iter().filter(|(served, _)| served.model == model);
        all.map(|(served, is_default)| served.status(is_default)).collect()
    }

    /// Every version of every model, and whether it is its model's default.
    pub fn all(&self) -> Vec<(Arc<ServedVersion>, bool)> {
        let models = self.read();
        let all = models.values().flat_map(|versions| {
            let newest = versions.last_key_value().map(|(version, _)| *version);
            versions.values().map(move |served| (Arc::clone(served), Some(served.version) == newest))
        });
        all.collect()
    }

    /// Notes what keeps a model's newest files from being served, or that nothing does.
    pub fn note_problem(&self, model: &str, problem: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.remove(model);
        problems.extend(problem.map(|problem| (model.to_owned(), problem)));
    }

    /// What was noted last of each model.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Models> {
        // Nothing can panic between two changes of the map.
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }
}
