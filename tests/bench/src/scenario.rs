//! What is measured: models, encodings, queue types.

use anyhow::Result;
use millrace_harness::models;
use millrace_harness::onnx::ModelProto;
use millrace_producer::{Datatype, Request, Tensor};

/// A model of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// MLP 64-128-10, the committed digits model.
    Digits,
    /// MLP 128-256-10: the broker is the limit.
    Tiny,
    /// MLP 256-2048-2048-2048-2048-16: memory-bound at batch 1.
    Mid,
    /// A convolution net of about 25 ms an item: the model is the limit.
    Heavy,
}

impl Model {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Tiny => "tiny",
            Self::Mid => "mid",
            Self::Heavy => "heavy",
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
            Self::Heavy => vec![3, models::HEAVY_IMAGE, models::HEAVY_IMAGE],
        }
    }

    pub(crate) fn elements(self) -> usize {
        self.row().iter().product::<i64>().unsigned_abs() as usize
    }

    /// The generated model; `None` for the committed one.
    pub(crate) fn generated(self) -> Option<ModelProto> {
        match self {
            Self::Digits => None,
            Self::Tiny => Some(models::mlp(models::MLP_TINY)),
            Self::Mid => Some(models::mlp(models::MLP_MID)),
            Self::Heavy => Some(models::heavy()),
        }
    }

    /// Batch sizes that the raw loop tries; its best counts.
    pub(crate) fn batches(self) -> &'static [usize] {
        match self {
            Self::Heavy => &[1, 4],
            _ => &[1, 16, 64],
        }
    }

    /// Where larger batches stop paying.
    pub(crate) fn largest_batch(self) -> usize {
        self.batches().iter().copied().max().unwrap_or(1)
    }

    /// Requests in flight in the fleet.
    pub(crate) fn in_flight(self) -> usize {
        match self {
            Self::Heavy => 32,
            _ => 512,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) model: Model,
    pub(crate) is_json: bool,
    pub(crate) queue_type: &'static str,
}

impl Scenario {
    pub(crate) fn name(&self) -> String {
        let encoding = if self.is_json { "json" } else { "binary" };
        format!("{} {encoding} {}", self.model.name(), self.queue_type)
    }

    /// Fixed, varied values of one row.
    pub(crate) fn row(&self) -> Vec<f32> {
        (0..self.model.elements()).map(|i| ((i * 7 % 17) as f32) / 16.0).collect()
    }

    /// The row as it stands in a binary message: little-endian.
    pub(crate) fn row_bytes(&self) -> Vec<u8> {
        self.row().into_iter().flat_map(f32::to_le_bytes).collect()
    }

    /// A single-row request.
    pub(crate) fn request(&self) -> Result<Request> {
        let shape = [vec![1], self.model.row()].concat();
        let tensor = Tensor::new(self.model.input(), Datatype::Fp32, shape, self.row_bytes().into())?;
        let request = Request::new(self.model.name()).tier("premium").input(tensor);
        Ok(if self.is_json { request.json() } else { request })
    }
}

/// All scenarios whose name contains `only`.
pub(crate) fn selected(only: &str) -> Vec<Scenario> {
    let mut all = Vec::new();
    for (model, is_json, queue_type) in [
        (Model::Digits, true, "quorum"),
        (Model::Digits, false, "quorum"),
        (Model::Tiny, false, "quorum"),
        (Model::Tiny, false, "classic"),
        (Model::Tiny, true, "quorum"),
        (Model::Mid, false, "quorum"),
        (Model::Heavy, false, "quorum"),
    ] {
        all.push(Scenario { model, is_json, queue_type });
    }
    all.retain(|scenario| scenario.name().contains(only));
    all
}
