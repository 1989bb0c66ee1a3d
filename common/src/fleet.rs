//! The fleet's directory: what workers announce every second, and what a listener knows from it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::protocol::tensor::Datatype;

/// The version of the announcement's format. Readers skip announcements of a newer one.
pub const FORMAT: u32 = 1;
/// How often a worker announces itself.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// A worker not heard of for this long is forgotten.
pub const FORGET_AFTER: Duration = Duration::from_secs(3);

/// One worker's announcement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// [`FORMAT`].
    pub format: u32,
    /// The worker's name, unique in the fleet.
    pub worker: String,
    /// When it started, milliseconds since the epoch.
    pub started_ms: u64,
    /// Its clock now, milliseconds since the epoch.
    pub now_ms: u64,
    /// Whether it takes requests; false while it drains.
    pub is_ready: bool,
    /// Build version.
    pub build: String,
    /// What it serves.
    pub models: Vec<ModelStatus>,
    /// Its lanes, by model and tier.
    pub lanes: Vec<LaneStatus>,
    /// What keeps its models' newest files from being served, for people.
    #[serde(default)]
    pub problems: Vec<String>,
    /// The live switches that hold for it, values by name.
    #[serde(default)]
    pub switches: BTreeMap<String, String>,
    /// Whether clients may answer from what they keep.
    #[serde(default = "yes")]
    pub allows_cache: bool,
}

fn yes() -> bool {
    true
}

/// One model version of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Model name.
    pub name: String,
    /// Version.
    pub version: u64,
    /// Whether requests without a pinned version run on it.
    pub is_default: bool,
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs.
    pub outputs: Vec<TensorSpec>,
    /// Most rows of a request and of a batch; 1 where the model cannot be batched.
    pub max_batch_size: u32,
    /// Whether rows of different requests may share a batch.
    pub is_batched: bool,
    /// Rows that clients should join in one request, at most; 1 where they should not.
    #[serde(default)]
    pub pack_rows: u32,
    /// Execution provider of each instance.
    pub instances: Vec<String>,
    /// Rows served since the start.
    pub rows: u64,
    /// Batches run since the start.
    pub batches: u64,
    /// Time spent running the model since the start, microseconds.
    pub busy_us: u64,
    /// What batches cost, learned: rows, and microseconds of a batch of so many.
    #[serde(default)]
    pub costs_us: Vec<(u32, u64)>,
    /// The same of batches that requests made up, the warm-up's left out.
    #[serde(default)]
    pub ran_us: Vec<(u32, u64)>,
    /// State of its circuit breaker: `closed`, `open` or `half_open`; where one is forced, `forced_open` or `disabled`.
    #[serde(default)]
    pub breaker: String,
}

impl ModelStatus {
    /// How many times as long as `other` this one takes, by the batches of requests that both have run: the median over
    /// their sizes.
    pub fn slowness(&self, other: &Self) -> Option<f64> {
        let mut ratios: Vec<f64> = Vec::new();
        for (rows, own_us) in &self.ran_us {
            let same = other.ran_us.iter().find(|(other_rows, _)| other_rows == rows);
            ratios.extend(same.map(|(_, other_us)| (*own_us).max(1) as f64 / (*other_us).max(1) as f64));
        }
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    }
}

/// One lane of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Model name.
    pub model: String,
    /// Tier name.
    pub tier: String,
    /// Requests waiting in the worker.
    pub requests: u64,
    /// Bytes the lane holds, running requests included.
    pub bytes: u64,
    /// Rows served since the start.
    pub served_rows: u64,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Element type; `None` for what the protocol cannot carry.
    pub datatype: Option<Datatype>,
    /// Dimensions; −1 where any size fits.
    pub shape: Vec<i64>,
}

/// What a listener knows of the fleet. Plain data: time is a parameter.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    workers: BTreeMap<String, Heard>,
    /// Of all announcements kept, as they came.
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Heard {
    at: Instant,
    bytes: usize,
    status: WorkerStatus,
}

impl Fleet {
    /// Most bytes of announcements remembered; an attacker who may announce must not fill memory.
    const MAX_BYTES: usize = 32 << 20;
    /// Longest announcement read: a thousand models take about as much. In memory its lists may take twenty times their text.
    pub const MAX_ANNOUNCEMENT: usize = 1 << 20;

    /// Takes an announcement; one that is longer than a MiB, cannot be read, or has a newer format is ignored.
    pub fn hear(&mut self, announcement: &[u8], now: Instant) {
        if announcement.len() > Self::MAX_ANNOUNCEMENT {
            return;
        }
        let Ok(status) = serde_json::from_slice::<WorkerStatus>(announcement) else {
            return;
        };
        if status.format != FORMAT {
            return;
        }
        let bytes = announcement.len();
        self.forget(&status.worker);
        if self.bytes + bytes > Self::MAX_BYTES {
            self.forget_silent(now);
        }
        if self.bytes + bytes <= Self::MAX_BYTES {
            self.bytes += bytes;
            self.workers.insert(status.worker.clone(), Heard { at: now, bytes, status });
        }
    }

    fn forget(&mut self, worker: &str) {
        if let Some(heard) = self.workers.remove(worker) {
            self.bytes -= heard.bytes;
        }
    }

    /// Forgets workers that have been silent for [`FORGET_AFTER`].
    pub fn forget_silent(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.workers.retain(|_, heard| {
            let is_kept = now.saturating_duration_since(heard.at) < FORGET_AFTER;
            *bytes -= if is_kept { 0 } else { heard.bytes };
            is_kept
        });
    }

    /// The workers heard of lately, by name.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerStatus> {
        self.workers.values().map(|heard| &heard.status)
    }

    /// Rows that may travel in one request to this model, its default version where none is named: what the least of its
    /// workers takes. `None` where no worker is known that serves it.
    pub fn pack_rows(&self, model: &str, version: Option<u64>) -> Option<u32> {
        let served = self.workers().filter(|worker| worker.is_ready).flat_map(|worker| &worker.models);
        let meant = served.filter(|served| {
            served.name == model && version.map_or(served.is_default, |version| served.version == version)
        });
        meant.map(|served| served.pack_rows.min(served.max_batch_size).max(1)).min()
    }

    /// How many times as long as the fastest of the other workers that could stand in for it a worker takes to run a model:
    /// those which serve every version of it that this one does. 1 where that is not known.
    pub fn slowness(&self, own: &[ModelStatus]) -> f64 {
        let stands_in = |worker: &&WorkerStatus| {
            let serves = |own: &ModelStatus| {
                worker.models.iter().any(|other| (&other.name, other.version) == (&own.name, own.version))
            };
            worker.is_ready && own.iter().all(serves)
        };
        let own_default = own.iter().find(|own| own.is_default);
        let others = self.workers().filter(stands_in).flat_map(|worker| &worker.models);
        let slowness = others.filter_map(|other| {
            let own = own_default.filter(|own| (&own.name, own.version) == (&other.name, other.version))?;
            own.slowness(other)
        });
        slowness.max_by(f64::total_cmp).unwrap_or(1.0)
    }

    /// Whether clients may answer from what they keep: no worker forbids it.
    pub fn allows_cache(&self) -> bool {
        self.workers().all(|worker| worker.allows_cache)
    }

    /// Whether a ready worker serves this version of the model.
    pub fn serves(&self, model: &str, version: u64) -> bool {
        self.workers().any(|worker| {
            worker.is_ready
                && worker.models.iter().any(|served| served.name == model && served.version == version)
        })
    }
}
