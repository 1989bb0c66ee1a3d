//! From the model repository to back ends that are warm.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_common::amqp::connection::ConnectError;
use millrace_common::amqp::topology::ApplyError;
use tracing::{info, warn};

use crate::catalogue::{Catalogue, ServedVersion, Stats};
use crate::config::Config;
use crate::inbound::admission::Rules;
use crate::model::backend::Backend;
use crate::model::config::{InstanceGroup, InstanceKind, ModelConfig};
use crate::model::onnx::{OnnxError, Runtime};
use crate::model::padding::{Padding, PaddingError};
use crate::model::repository::{RepositoryError, scan};
use crate::model::signature::Signature;
use crate::model::warmup;
use crate::schedule::batcher::BatchPolicy;
use crate::schedule::cap::Caps;
use crate::schedule::pickup::Pickup;
use crate::schedule::scheduler::Scheduler;
use crate::schedule::tier_set::TierSet;

/// Most rows of a batch where the model's configuration does not say: the CPU gains little beyond (measured 2026-11).
const DEFAULT_MAX_BATCH_SIZE: u32 = 64;

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The library, a model or a provider.
    #[error("model `{model}` version {version}: {source}")]
    Model {
        /// Model name.
        model: String,
        /// Version.
        version: u64,
        /// What is wrong.
        source: OnnxError,
    },
    /// A model whose requests cannot be padded.
    #[error("model `{model}` version {version}: {source}")]
    Padding {
        /// Model name.
        model: String,
        /// Version.
        version: u64,
        /// What stands against it.
        source: PaddingError,
    },
    /// The library.
    #[error(transparent)]
    Library(#[from] OnnxError),
    /// A model that a provider loads but cannot run.
    #[error("model `{model}` version {version} failed its warm-up on {kind}: {reason}")]
    WarmUp {
        /// Model name.
        model: String,
        /// Version.
        version: u64,
        /// The provider.
        kind: &'static str,
        /// The failure.
        reason: String,
    },
    /// The TLS files.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The topology.
    #[error(transparent)]
    Topology(#[from] ApplyError),
    /// Objects that an operator must create first.
    #[error(
        "the broker lacks {0}: run `millrace topology apply` with this worker's configuration (topology.retry_delays_ms names queues), or set topology.declare = true"
    )]
    Missing(String),
    /// More queues than one connection can consume.
    #[error(
        "{consumers} queues to consume, one connection carries {most}: serve fewer models in each worker (models.serve), or give \
         tiers fewer shards (topology.tiers)"
    )]
    Consumers {
        /// Queues of all models, tiers and shards.
        consumers: usize,
        /// How many it could be.
        most: usize,
    },
    /// No thread for an instance.
    #[error("cannot start an instance thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Models loaded and warm, nothing consumed yet.
pub struct Loaded {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) backends: Vec<(Arc<ServedVersion>, TierSet, Box<dyn Backend>)>,
}

/// Loads the library and every model, and warms them up. Blocks for as long as that takes.
///
/// # Errors
/// [`StartError`].
pub fn load(config: &Config) -> Result<Loaded, StartError> {
    let runtime = Runtime::load(&config.onnxruntime.library)?;
    info!(library = %config.onnxruntime.library.display(), runtime = runtime.description(), "loaded ONNX Runtime");
    let mut loaded = Loaded { catalogue: Arc::default(), backends: Vec::new() };
    let mut catalogue = Catalogue::default();
    for (model, found) in scan(&config.models.repository, &config.models.serve, &config.topology.tiers)? {
        for (&version, file) in &found.versions {
            let place = Place { runtime: &runtime, config, model: &model, version };
            let (served, backends) = place.load(file, &found.config)?;
            let serves = served.serves.clone();
            let each = backends.into_iter().zip(serves);
            loaded.backends.extend(each.map(|(backend, serves)| (Arc::clone(&served), serves, backend)));
            catalogue.insert(served);
        }
    }
    loaded.catalogue = Arc::new(catalogue);
    Ok(loaded)
}

/// A loaded version and the back ends of its instances.
type Ready = (Arc<ServedVersion>, Vec<Box<dyn Backend>>);

struct Place<'a> {
    runtime: &'a Runtime,
    config: &'a Config,
    model: &'a str,
    version: u64,
}

impl Place<'_> {
    fn load(&self, file: &Path, own: &ModelConfig) -> Result<Ready, StartError> {
        let started = Instant::now();
        let mut backends: Vec<Box<dyn Backend>> = Vec::new();
        let mut instances = Vec::new();
        let mut serves = Vec::new();
        for group in groups(own) {
            let tiers = group.serves(&self.config.topology.tiers);
            let gpus = if group.gpus.is_empty() { vec![0] } else { group.gpus.clone() };
            for gpu in gpus {
                for _ in 0..group.count {
                    let backend =
                        self.runtime.open(file, &group, gpu).map_err(|source| self.error(source))?;
                    backends.push(Box::new(backend));
                    instances.push(group.kind);
                    serves.push(tiers);
                }
            }
        }
        let signature = backends[0].signature().clone();
        let is_batched = signature.shares_first_dimension();
        if let (false, Some(size @ 2..)) = (is_batched, own.max_batch_size) {
            warn!(
                model = self.model,
                version = self.version,
                max_batch_size = size,
                "max_batch_size has no effect: inputs and outputs share no first dimension of one name; export the model with \
                 a named dynamic axis 0"
            );
        }
        let max_batch_size = match own.max_batch_size {
            _ if !is_batched => 1,
            Some(size) => size,
            None => DEFAULT_MAX_BATCH_SIZE,
        };
        let is_shared = is_batched && own.batch_safe.unwrap_or(true) && max_batch_size > 1;
        let padding = self.padding(own, &signature, is_shared)?;
        let max_padded_elements = own.dynamic_batching.max_padded_elements;
        let rules = Rules { signature, max_batch_size, is_batched, is_shared, padding, max_padded_elements };
        let runs = match own.model_warmup {
            Some(false) => Vec::new(),
            _ => self.warm_up(&mut backends, &instances, &rules)?,
        };
        let tiers = &self.config.topology.tiers;
        let weights: Vec<u32> = tiers.iter().map(|tier| tier.weight).collect();
        let caps = Caps::new(tiers.iter().map(|tier| tier.max_share), backends.len());
        let policy = BatchPolicy {
            // Rows that cannot share a batch have no company to wait for.
            max_batch_size: if rules.is_shared { max_batch_size } else { 1 },
            preferred_batch_sizes: own.dynamic_batching.preferred_batch_size.clone(),
            max_queue_delay: Duration::from_micros(own.dynamic_batching.max_queue_delay_microseconds),
            max_batch_time: own.dynamic_batching.max_batch_time(),
        };
        info!(model = self.model, version = self.version, instances = backends.len(), max_batch_size,
            is_batched = rules.is_shared, took = ?started.elapsed(), "model ready");
        let served = Arc::new(ServedVersion {
            model: self.model.to_owned(),
            version: self.version,
            rules,
            pickup: Pickup::new(Scheduler::new(&weights, policy).capped(caps)),
            instances: instances.into_iter().map(|kind| kind.as_str().to_owned()).collect(),
            serves,
            stats: Stats::new(weights.len()),
        });
        for (rows, took) in runs {
            served.pickup.learn(rows, took);
        }
        Ok((served, backends))
    }

    fn warm_up(
        &self,
        backends: &mut [Box<dyn Backend>],
        kinds: &[InstanceKind],
        rules: &Rules,
    ) -> Result<Vec<(u32, Duration)>, StartError> {
        let mut all_runs = Vec::new();
        for (backend, kind) in backends.iter_mut().zip(kinds) {
            let failure = match warmup::run(&mut **backend, rules) {
                Ok(runs) => {
                    all_runs.extend(runs);
                    continue;
                }
                Err(failure) => failure,
            };
            if *kind == InstanceKind::Cpu {
                // The inputs are invented; a model may rightly refuse zeros.
                warn!(model = self.model, version = self.version, error = %failure, "warm-up failed, serving all the same");
            } else {
                let (model, kind) = (self.model.to_owned(), kind.as_str());
                return Err(StartError::WarmUp {
                    model,
                    version: self.version,
                    kind,
                    reason: failure.to_string(),
                });
            }
        }
        Ok(all_runs)
    }

    fn padding(
        &self,
        own: &ModelConfig,
        signature: &Signature,
        is_shared: bool,
    ) -> Result<Option<Padding>, StartError> {
        let Some(config) = &own.dynamic_batching.padding else { return Ok(None) };
        let padding = match is_shared {
            true => Padding::new(config, own.dynamic_batching.max_padded_elements.is_some(), signature),
            false => Err(PaddingError::NotShared),
        };
        let (model, version) = (self.model.to_owned(), self.version);
        padding.map(Some).map_err(|source| StartError::Padding { model, version, source })
    }

    fn error(&self, source: OnnxError) -> StartError {
        StartError::Model { model: self.model.to_owned(), version: self.version, source }
    }
}

fn groups(own: &ModelConfig) -> Vec<InstanceGroup> {
    if own.instance_group.is_empty() {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = u32::try_from(cores).unwrap_or(1);
        return vec![InstanceGroup { count, ..InstanceGroup::default() }];
    }
    own.instance_group.clone()
}
