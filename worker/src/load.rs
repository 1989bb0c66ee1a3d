//! From the model repository to back ends that are warm.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_common::amqp::connection::ConnectError;
use millrace_common::amqp::topology::ApplyError;
use millrace_common::lifecycle::Lifecycle;
use tracing::{info, warn};

use crate::catalogue::{Catalogue, ServedVersion, Stats, TierCounts};
use crate::config::Config;
use crate::guard::breaker::Breaker;
use crate::guard::ladder::{Ladder, LadderError};
use crate::inbound::admission::Rules;
use crate::model::backend::Backend;
use crate::model::config::{InstanceGroup, InstanceKind, ModelConfig};
use crate::model::onnx::{OnnxError, Runtime};
use crate::model::padding::{Padding, PaddingError};
use crate::model::repository::{Found, RepositoryError, scan};
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
    /// A default answer that is none.
    #[error("model `{model}` version {version}: {source}")]
    Ladder {
        /// Model name.
        model: String,
        /// Version.
        version: u64,
        /// What is wrong.
        source: LadderError,
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
    /// The worker stops.
    #[error("the worker stops")]
    Stopped,
}

impl StartError {
    /// Whether another configuration is the remedy, of the worker or of a model: what `--check-config` finds, and more.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Repository(_) | Self::Padding { .. } | Self::Ladder { .. } | Self::Consumers { .. }
        )
    }
}

/// What is put around each back end, once it is warm, of the model of this name.
pub type Wrap = Box<dyn Fn(&str, Box<dyn Backend>) -> Box<dyn Backend> + Send + Sync>;

/// Models loaded and warm, nothing consumed yet.
pub struct Loaded {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) ready: Vec<Ready>,
    /// The files that they were loaded from.
    pub(crate) found: BTreeMap<String, Found>,
    pub(crate) loader: Loader,
}

/// A version that is loaded and warm, and the back ends of its instances.
pub struct Ready {
    pub(crate) served: Arc<ServedVersion>,
    pub(crate) backends: Vec<(TierSet, Box<dyn Backend>)>,
}

/// Loads the library and every model, and warms them up. Blocks for as long as that takes.
///
/// # Errors
/// [`StartError`].
pub fn load(config: &Config, wrap: Wrap) -> Result<Loaded, StartError> {
    let runtime = Runtime::load(&config.onnxruntime.library)?;
    info!(library = %config.onnxruntime.library.display(), runtime = runtime.description(), "loaded ONNX Runtime");
    let loader = Loader { runtime, config: config.clone(), wrap };
    let (catalogue, mut ready) = (Catalogue::default(), Vec::new());
    let found = scan(&config.models.repository, &config.models.serve, &config.topology.tiers)?;
    for (model, found) in &found {
        let counts = Arc::new(TierCounts::new(config.topology.tiers.len()));
        for (&version, file) in &found.versions {
            let place = Place { loader: &loader, model, version, counts: &counts, stop: &Lifecycle::new() };
            let version = place.load(file, &found.config)?;
            catalogue.change(model, [Arc::clone(&version.served)], &BTreeSet::new());
            ready.push(version);
        }
    }
    for model in found.keys() {
        check_ladders(&catalogue, model);
    }
    Ok(Loaded { catalogue: Arc::new(catalogue), ready, found, loader })
}

/// A rung of this model's that leads nowhere is passed over: better said when it is loaded.
pub(crate) fn check_ladders(catalogue: &Catalogue, model: &str) {
    for served in catalogue.versions(model) {
        for (name, version) in served.ladder.models() {
            let other = catalogue.find(name, version);
            if !other.is_some_and(|other| served.rules.signature.is_like(&other.rules.signature)) {
                let problem = "no such model here, or one of other inputs and outputs";
                warn!(%model, degradation = name, ?version, problem, "a rung of its ladder leads nowhere");
            }
        }
    }
}

/// What loads model versions: at the start, and while others are served.
pub(crate) struct Loader {
    runtime: Runtime,
    pub(crate) config: Config,
    wrap: Wrap,
}

/// Which version is loaded, and for whom.
pub(crate) struct Place<'a> {
    pub(crate) loader: &'a Loader,
    pub(crate) model: &'a str,
    pub(crate) version: u64,
    /// The model's.
    pub(crate) counts: &'a Arc<TierCounts>,
    /// Nobody needs it any more once this stops.
    pub(crate) stop: &'a Lifecycle,
}

/// Sessions, one an instance.
#[derive(Default)]
struct Opened {
    backends: Vec<Box<dyn Backend>>,
    instances: Vec<InstanceKind>,
    serves: Vec<TierSet>,
}

impl Place<'_> {
    /// Opens the version's sessions and warms them up. Blocks for as long as that takes; between two sessions it looks whether it
    /// shall go on.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn load(&self, file: &Path, own: &ModelConfig) -> Result<Ready, StartError> {
        let started = Instant::now();
        info!(model = %self.model, version = self.version, "loading");
        let config = &self.loader.config;
        let Opened { mut backends, instances, serves } = self.open(file, own)?;
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
        let tiers = &config.topology.tiers;
        let weights: Vec<u32> = tiers.iter().map(|tier| tier.weight).collect();
        let caps = Caps::new(tiers.iter().map(|tier| tier.max_share), backends.len());
        let policy = BatchPolicy {
            // Rows that cannot share a batch have no company to wait for.
            max_batch_size: if rules.is_shared { max_batch_size } else { 1 },
            preferred_batch_sizes: own.dynamic_batching.preferred_batch_size.clone(),
            max_queue_delay: Duration::from_micros(own.dynamic_batching.max_queue_delay_microseconds),
            max_batch_time: own.dynamic_batching.max_batch_time(),
        };
        let ladder = self.ladder(own, file, &rules.signature)?;
        info!(model = self.model, version = self.version, instances = backends.len(), max_batch_size,
            is_batched = rules.is_shared, took = ?started.elapsed(), "model ready");
        let served = Arc::new(ServedVersion {
            model: self.model.to_owned(),
            version: self.version,
            rules,
            inference_timeout: Duration::from_secs(own.inference_timeout_seconds.into()),
            pickup: Pickup::new(Scheduler::new(&weights, policy).capped(caps)),
            instances: instances.into_iter().map(|kind| kind.as_str().to_owned()).collect(),
            serves: serves.clone(),
            stats: Stats::new(Arc::clone(self.counts)),
            breaker: Mutex::new(Breaker::new(own.circuit_breaker.clone(), Instant::now())),
            ladder,
            degraded: Mutex::new(TierSet::NONE),
        });
        for (rows, took) in runs {
            served.pickup.learn(rows, took);
        }
        let backends = backends.into_iter().map(|backend| (self.loader.wrap)(self.model, backend));
        Ok(Ready { served, backends: serves.into_iter().zip(backends).collect() })
    }

    fn open(&self, file: &Path, own: &ModelConfig) -> Result<Opened, StartError> {
        let mut opened = Opened::default();
        for group in groups(own) {
            let tiers = group.serves(&self.loader.config.topology.tiers);
            let gpus = if group.gpus.is_empty() { vec![0] } else { group.gpus.clone() };
            for gpu in gpus {
                for _ in 0..group.count {
                    self.go_on()?;
                    let backend =
                        self.loader.runtime.open(file, &group, gpu).map_err(|source| self.error(source))?;
                    opened.backends.push(Box::new(backend));
                    opened.instances.push(group.kind);
                    opened.serves.push(tiers);
                }
            }
        }
        Ok(opened)
    }

    fn warm_up(
        &self,
        backends: &mut [Box<dyn Backend>],
        kinds: &[InstanceKind],
        rules: &Rules,
    ) -> Result<Vec<(u32, Duration)>, StartError> {
        let mut all_runs = Vec::new();
        for (backend, kind) in backends.iter_mut().zip(kinds) {
            self.go_on()?;
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

    fn ladder(&self, own: &ModelConfig, file: &Path, signature: &Signature) -> Result<Ladder, StartError> {
        // `<model>/<version>/model.onnx`
        let folder = file.ancestors().nth(2).unwrap_or(file);
        let tiers = &self.loader.config.topology.tiers;
        let (model, version) = (self.model.to_owned(), self.version);
        Ladder::load(&own.degradation, self.model, folder, signature, tiers)
            .map_err(|source| StartError::Ladder { model, version, source })
    }

    fn go_on(&self) -> Result<(), StartError> {
        if self.stop.is_stopping() { Err(StartError::Stopped) } else { Ok(()) }
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
