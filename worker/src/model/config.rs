//! A model's own `config.toml`. Optional: what it leaves out is derived from the ONNX file.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::{TierSettings, within};
use millrace_common::tier::Tier;
use serde::Deserialize;

use super::padding::PaddingConfig;
use crate::guard::breaker::BreakerConfig;
use crate::guard::ladder::RungConfig;
use crate::schedule::tier_set::TierSet;

/// `<repository>/<model>/config.toml`, with Triton's names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Most rows of a batch. Left out: 64 where rows can be batched, else 1.
    pub max_batch_size: Option<u32>,
    /// When batches are worth running.
    pub dynamic_batching: DynamicBatching,
    /// What runs the model. Left out: one single-threaded CPU instance per core.
    pub instance_group: Vec<InstanceGroup>,
    /// Runs of the model before the worker takes requests. On by default.
    pub model_warmup: Option<bool>,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// Whether rows of different requests may share a batch. Off for models whose result depends on batch mates, such as
    /// dynamically quantised ones (their scale spans the batch).
    pub batch_safe: Option<bool>,
    /// How long a batch may run. Then it is stopped and its parts run apart, as where it fails; a back end that cannot be stopped
    /// ends the worker.
    pub inference_timeout_seconds: u32,
    /// Leaves the model alone for a while when it fails.
    pub circuit_breaker: BreakerConfig,
    /// What requests get then: the rungs of each tier's ladder, from the top.
    pub degradation: Vec<RungConfig>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            max_batch_size: None,
            dynamic_batching: DynamicBatching::default(),
            instance_group: Vec::new(),
            model_warmup: None,
            version_policy: VersionPolicy::default(),
            batch_safe: None,
            inference_timeout_seconds: 60,
            circuit_breaker: BreakerConfig::default(),
            degradation: Vec::new(),
        }
    }
}

/// `[dynamic_batching]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamicBatching {
    /// Sizes of batches that run without waiting for more rows: the largest of them that waits is taken.
    pub preferred_batch_size: Vec<u32>,
    /// How long an idle instance lets a request wait for others. 0 by default: while instances are busy batches grow anyway.
    pub max_queue_delay_microseconds: u64,
    /// How long a batch may take, as learned from those that ran: a premium request waits for the rest of a running one. The
    /// default is long enough for batching to pay where it pays at all; where it does not, batches are smaller anyway, unless
    /// `preferred_batch_size` is set. 0 for full batches, however long they take.
    pub max_batch_time_microseconds: u64,
    /// Rows × inner elements of the largest input of a batch, inner sizes as padding rounds them up: no requests are joined beyond
    /// it, while one that is larger by itself runs alone. Clients then join no rows in one request. Left out: no bound.
    pub max_padded_elements: Option<u64>,
    /// Lets requests of unlike inner sizes share batches. Left out: only those of equal sizes do.
    pub padding: Option<PaddingConfig>,
}

impl Default for DynamicBatching {
    fn default() -> Self {
        Self {
            preferred_batch_size: Vec::new(),
            max_queue_delay_microseconds: 0,
            max_batch_time_microseconds: 100_000,
            max_padded_elements: None,
            padding: None,
        }
    }
}

impl DynamicBatching {
    /// The bound, if there is one.
    pub fn max_batch_time(&self) -> Option<Duration> {
        let micros = self.max_batch_time_microseconds;
        (micros > 0).then(|| Duration::from_micros(micros))
    }
}

/// `[[instance_group]]`: equal instances.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceGroup {
    /// How many; on GPUs, how many on each.
    pub count: u32,
    /// The execution provider.
    pub kind: InstanceKind,
    /// GPU numbers; empty means GPU 0.
    pub gpus: Vec<u32>,
    /// Threads inside one run, on the CPU. One gives the best throughput and tail; more give a shorter single run.
    pub intra_threads: u32,
    /// Tiers that its instances serve; empty means all. Instances of one tier alone are reserved for it: its requests never wait
    /// for another's batch, and nobody else uses them.
    pub tiers: Vec<Tier>,
    /// Whether nodes that a GPU provider cannot run may run on the CPU. A graph may need it for shape computations.
    pub allow_cpu_fallback: bool,
}

impl Default for InstanceGroup {
    fn default() -> Self {
        Self {
            count: 1,
            kind: InstanceKind::Cpu,
            gpus: vec![],
            intra_threads: 1,
            tiers: vec![],
            allow_cpu_fallback: false,
        }
    }
}

impl InstanceGroup {
    /// The numbers of the tiers that its instances serve.
    pub fn serves(&self, tiers: &[TierSettings]) -> TierSet {
        if self.tiers.is_empty() {
            return TierSet::ALL;
        }
        TierSet::of((0..tiers.len()).filter(|&number| self.tiers.contains(&tiers[number].name)))
    }
}

/// Execution providers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceKind {
    /// The host's cores.
    #[default]
    #[serde(alias = "KIND_CPU")]
    Cpu,
    /// NVIDIA GPUs through CUDA.
    #[serde(alias = "KIND_GPU", alias = "gpu")]
    Cuda,
    /// NVIDIA GPUs through TensorRT.
    TensorRt,
}

impl InstanceKind {
    /// The name in configuration, status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }
}

/// `version_policy`: which of the version folders are served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum VersionPolicy {
    /// The newest ones.
    Latest {
        /// How many.
        num_versions: usize,
    },
    /// Every one.
    All {},
    /// These.
    Specific {
        /// Version numbers.
        versions: Vec<u64>,
    },
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest { num_versions: 1 }
    }
}

impl VersionPolicy {
    /// Those of these versions that are served.
    pub fn choose(&self, versions: &BTreeSet<u64>) -> BTreeSet<u64> {
        match self {
            Self::All {} => versions.clone(),
            Self::Latest { num_versions } => versions.iter().rev().take(*num_versions).copied().collect(),
            Self::Specific { versions: wanted } => {
                versions.iter().filter(|version| wanted.contains(version)).copied().collect()
            }
        }
    }
}

impl ModelConfig {
    /// Checks the instance groups' tiers against those there are.
    ///
    /// # Errors
    /// When a group names another, or none serves one of them: its requests would wait for ever.
    pub fn check_tiers(&self, tiers: &[TierSettings]) -> Result<(), Invalid> {
        let known = || tiers.iter().map(|tier| tier.name.to_string()).collect::<Vec<_>>().join(", ");
        let mut named = self.instance_group.iter().flat_map(|group| &group.tiers);
        if let Some(unknown) = named.find(|named| !tiers.iter().any(|tier| tier.name == **named)) {
            return Err(Invalid::new(
                "instance_group.tiers",
                unknown,
                format!("topology.tiers has {}", known()),
            ));
        }
        let mut degraded = self.degradation.iter().flat_map(|rung| &rung.tiers);
        if let Some(unknown) = degraded.find(|named| !tiers.iter().any(|tier| tier.name == **named)) {
            return Err(Invalid::new(
                "degradation.tiers",
                unknown,
                format!("topology.tiers has {}", known()),
            ));
        }
        let is_served = |number| self.instance_group.iter().any(|group| group.serves(tiers).contains(number));
        match (0..tiers.len()).find(|&number| !self.instance_group.is_empty() && !is_served(number)) {
            None => Ok(()),
            Some(number) => Err(Invalid::new(
                "instance_group.tiers",
                format!("without {}", tiers[number].name),
                "name every tier in some group, or leave `tiers` out of one",
            )),
        }
    }
}

impl Validate for ModelConfig {
    fn validate(&self) -> Result<(), Invalid> {
        if let Some(size) = self.max_batch_size {
            within("max_batch_size", size.into(), 1, 65_536)?;
        }
        within("inference_timeout_seconds", self.inference_timeout_seconds.into(), 1, 86_400)?;
        self.circuit_breaker.validate()?;
        self.degradation.iter().try_for_each(RungConfig::validate)?;
        let delay = self.dynamic_batching.max_queue_delay_microseconds;
        within("dynamic_batching.max_queue_delay_microseconds", delay, 0, 10_000_000)?;
        for &size in &self.dynamic_batching.preferred_batch_size {
            let most = self.max_batch_size.unwrap_or(65_536).into();
            within("dynamic_batching.preferred_batch_size", size.into(), 1, most)?;
        }
        if let Some(most) = self.dynamic_batching.max_padded_elements {
            within("dynamic_batching.max_padded_elements", most, 1, 1 << 40)?;
        }
        if let Some(padding) = &self.dynamic_batching.padding {
            padding.validate()?;
        }
        for group in &self.instance_group {
            within("instance_group.count", group.count.into(), 1, 256)?;
            within("instance_group.intra_threads", group.intra_threads.into(), 1, 256)?;
            if group.kind == InstanceKind::Cpu && !group.gpus.is_empty() {
                return Err(Invalid::new(
                    "instance_group.gpus",
                    format!("{:?}", group.gpus),
                    "only kinds cuda and tensorrt take gpus; set kind = \"cuda\"",
                ));
            }
        }
        match &self.version_policy {
            VersionPolicy::Latest { num_versions } => {
                within("version_policy.latest.num_versions", *num_versions as u64, 1, 1_000)
            }
            VersionPolicy::Specific { versions } if versions.is_empty() => {
                Err(Invalid::new("version_policy.specific.versions", "empty", "name at least one version"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_known_and_bounded() {
        let config: ModelConfig = toml::from_str(
            r#"
            max_batch_size = 32
            batch_safe = false
            model_warmup = false
            inference_timeout_seconds = 5
            version_policy = { latest = { num_versions = 2 } }
            [dynamic_batching]
            preferred_batch_size = [8, 16]
            max_queue_delay_microseconds = 500
            max_padded_elements = 65536
            [dynamic_batching.padding]
            values = { input_ids = 0, mask = false, x = -inf }
            buckets = [16, 32]
            [[instance_group]]
            kind = "cuda"
            gpus = [0, 1]
            "#,
        )
        .unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.instance_group[0].kind, InstanceKind::Cuda);
        for bad in [
            "max_batch_size = 0",
            "inference_timeout_seconds = 0",
            "dynamic_batching = { preferred_batch_size = [0] }",
            "dynamic_batching = { max_padded_elements = 0 }",
            "dynamic_batching.padding = { values = {} }",
            "dynamic_batching.padding = { values = { x = 0 }, buckets = [0] }",
            "dynamic_batching.padding = { values = { x = 0 }, buckets = [8, 8] }",
            "[[instance_group]]\ncount = 0",
            "[[instance_group]]\ngpus = [0]",
            "version_policy = { specific = { versions = [] } }",
        ] {
            let config: ModelConfig = toml::from_str(bad).unwrap();
            assert!(config.validate().is_err(), "{bad}");
        }
        assert!(toml::from_str::<ModelConfig>("max_batch = 3").is_err());
    }
}
