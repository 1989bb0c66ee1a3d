//! What is asked of a fleet: models, encodings, queue types.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use millrace_common::amqp::topology::QueueKind;
use millrace_harness::models;
use millrace_harness::onnx::ModelProto;
use millrace_producer::{Datatype, Request, Tensor};
use serde::{Deserialize, Serialize};

/// A model of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Model {
    /// MLP 64-128-10, the committed digits model.
    Digits,
    /// MLP 128-256-10: the broker is the limit.
    Tiny,
    /// MLP 256-2048-2048-2048-2048-16: memory-bound at batch 1.
    Mid,
    /// A convolution net of about 2.5 ms an item, whatever the batch.
    Light,
    /// A convolution net of about 25 ms an item: the model is the limit.
    Heavy,
    /// A transformer encoder of MiniLM-L6's size, 64 tokens a row.
    MiniLm,
}

/// The elements of an input.
pub(crate) enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

impl Model {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Tiny => "tiny",
            Self::Mid => "mid",
            Self::Light => "light",
            Self::Heavy => "heavy",
            Self::MiniLm => "minilm",
        }
    }

    pub(crate) fn input(self) -> &'static str {
        match self {
            Self::Digits => "image",
            _ => "x",
        }
    }

    /// Shape of one row.
    pub(crate) fn row(self) -> Vec<i64> {
        match self {
            Self::Digits => vec![64],
            Self::Tiny => vec![128],
            Self::Mid => vec![256],
            Self::Light => vec![3, models::LIGHT_IMAGE, models::LIGHT_IMAGE],
            Self::Heavy => vec![3, models::HEAVY_IMAGE, models::HEAVY_IMAGE],
            Self::MiniLm => vec![models::ENCODER_TOKENS as i64],
        }
    }

    /// Fixed, varied values for so many rows.
    pub(crate) fn values(self, rows: usize) -> Values {
        let elements = rows * self.row().iter().product::<i64>().unsigned_abs() as usize;
        match self {
            Self::MiniLm => {
                Values::I64((0..elements).map(|i| (i * 31 % models::ENCODER_VOCABULARY) as i64).collect())
            }
            _ => Values::F32((0..elements).map(|i| ((i * 7 % 17) as f32) / 16.0).collect()),
        }
    }

    /// One row as it stands in a binary message: little-endian.
    pub(crate) fn row_bytes(self) -> (Datatype, Vec<u8>) {
        match self.values(1) {
            Values::F32(values) => (Datatype::Fp32, values.into_iter().flat_map(f32::to_le_bytes).collect()),
            Values::I64(values) => (Datatype::Int64, values.into_iter().flat_map(i64::to_le_bytes).collect()),
        }
    }

    /// The generated model; `None` for the committed one.
    fn generated(self) -> Option<ModelProto> {
        match self {
            Self::Digits => None,
            Self::Tiny => Some(models::mlp(models::MLP_TINY)),
            Self::Mid => Some(models::mlp(models::MLP_MID)),
            Self::Light => Some(models::light()),
            Self::Heavy => Some(models::heavy()),
            Self::MiniLm => Some(models::encoder()),
        }
    }

    /// Writes it into a repository and returns its file.
    pub(crate) fn write(self, repository: &Path) -> Result<PathBuf> {
        if let Some(generated) = self.generated() {
            let file = models::write(repository, self.name(), 1, &generated)?;
            // Or the disk would be busy with it while something is measured.
            File::open(&file)?.sync_all()?;
            return Ok(file);
        }
        let target = repository.join(self.name()).join("1");
        std::fs::create_dir_all(&target)?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../compose/models/digits/1/model.onnx");
        std::fs::copy(source, target.join("model.onnx"))?;
        Ok(target.join("model.onnx"))
    }

    /// Where larger batches stop paying.
    pub(crate) fn largest_batch(self) -> usize {
        self.batches().iter().copied().max().unwrap_or(1)
    }

    /// Batch sizes that the raw loop tries; its best counts.
    pub(crate) fn batches(self) -> &'static [usize] {
        match self {
            Self::Heavy => &[1, 4],
            Self::MiniLm => &[1, 4, 16],
            _ => &[1, 16, 64],
        }
    }
}

/// A model and how its requests travel.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) model: Model,
    pub(crate) is_json: bool,
    pub(crate) queue_type: QueueKind,
    /// Whether the client may join rows of different requests into one message, as it does by default.
    pub(crate) is_packed: bool,
    /// Shards of every tier.
    pub(crate) shards: u16,
}

impl Workload {
    /// Binary requests over quorum queues, each a message of its own.
    pub(crate) fn of(model: Model) -> Self {
        Self { model, is_json: false, queue_type: QueueKind::Quorum, is_packed: false, shards: 1 }
    }

    pub(crate) fn name(&self) -> String {
        let encoding = if self.is_json { "json" } else { "binary" };
        let packed = if self.is_packed { " packed" } else { "" };
        let shards = if self.shards == 1 { String::new() } else { format!(" {} shards", self.shards) };
        format!("{} {encoding} {}{packed}{shards}", self.model.name(), self.queue_type)
    }

    /// Requests in flight that keep a fleet of one worker busy.
    pub(crate) fn in_flight(&self) -> usize {
        match self.model {
            Model::Heavy => 32,
            Model::MiniLm => 64,
            _ => 512,
        }
    }

    /// The input of a request of one row.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let (datatype, data) = self.model.row_bytes();
        let shape = [vec![1], self.model.row()].concat();
        Ok(Tensor::new(self.model.input(), datatype, shape, Bytes::from(data))?)
    }

    /// A request of one row.
    pub(crate) fn request(&self, tier: &str) -> Result<Request> {
        let request = Request::new(self.model.name()).tier(tier).input(self.tensor()?);
        Ok(if self.is_json { request.json() } else { request })
    }
}
