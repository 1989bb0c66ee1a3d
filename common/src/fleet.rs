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
}

impl ModelStatus {
    /// Rows a second that its instances run in their largest batches, by what was learned.
    pub fn rows_per_second(&self) -> Option<f64> {
        let (rows, micros) = self.costs_us.last().filter(|(_, micros)| *micros > 0)?;
        Some(f64::from(*rows) * 1e6 / *micros as f64 * self.instances.len() as f64)
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

    /// Takes an announcement; one that cannot be read, or of a newer format, is ignored.
    pub fn hear(&mut self, announcement: &[u8], now: Instant) {
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
    /// workers takes; 1 where none is known.
    pub fn pack_rows(&self, model: &str, version: Option<u64>) -> u32 {
        let served = self.workers().filter(|worker| worker.is_ready).flat_map(|worker| &worker.models);
        let meant = served.filter(|served| {
            served.name == model && version.map_or(served.is_default, |version| served.version == version)
        });
        meant.map(|served| served.pack_rows.min(served.max_batch_size)).min().unwrap_or(1).max(1)
    }

    /// Rows a second of the fastest ready worker that serves the model's default version.
    pub fn fastest(&self, model: &str) -> Option<f64> {
        let served = self.workers().filter(|worker| worker.is_ready).flat_map(|worker| &worker.models);
        let rates = served.filter(|served| served.name == model && served.is_default);
        rates.filter_map(ModelStatus::rows_per_second).max_by(f64::total_cmp)
    }

    /// Whether a ready worker serves this version of the model.
    pub fn serves(&self, model: &str, version: u64) -> bool {
        self.workers().any(|worker| {
            worker.is_ready
                && worker.models.iter().any(|served| served.name == model && served.version == version)
        })
    }
}
