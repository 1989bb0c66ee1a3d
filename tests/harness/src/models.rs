//! ONNX models for tests and benchmarks, and the model repositories that hold them.
//!
//! Every weight comes from a fixed seed, so a model has the same bytes on every machine. Inputs are called
//! `x` and outputs `y`; the first dimension is the batch, symbolic unless said otherwise.

mod encoder;
mod repository;
mod weights;

use anyhow::{Context, Result};

use crate::onnx::{AttributeProto, DataType, Dim, GraphBuilder, GraphProto, ModelProto, TensorProto};

pub use encoder::{ENCODER_TOKENS, ENCODER_VOCABULARY, encoder};
pub use repository::{write, write_config};
use weights::Weights;

/// Sizes for [`mlp`]: 35,594 weights; about 12 µs a run of one row, 45 µs of 64 (measured as for [`heavy`]).
pub const MLP_TINY: &[usize] = &[128, 256, 10];
/// Sizes for [`mlp`]: 13.1 million weights (53 MB); about 2.2 ms a run of one row, 18 ms of 64 (measured as
/// for [`heavy`]).
pub const MLP_MID: &[usize] = &[256, 2048, 2048, 2048, 2048, 16];

/// Sides of the images that [`heavy`] takes.
pub const HEAVY_IMAGE: i64 = 64;
/// Sides of the images that [`light`] takes: a tenth of [`HEAVY_IMAGE`]'s pixels.
pub const LIGHT_IMAGE: i64 = 20;
const HEAVY_CHANNELS: [usize; 7] = [3, 96, 96, 96, 96, 96, 96];
const CLASSES: usize = 10;

/// Side of the square matrices that [`slow`] multiplies.
const SLOW_MATRIX: usize = 128;
/// How often one thread multiplies them in a millisecond.
const SLOW_TRIPS_PER_MILLI: u64 = 26;

const BATCH: Dim = Dim::Named("batch");
const ROW_OF_4: [Dim; 2] = [BATCH, Dim::Fixed(4)];

/// `y` = `x`, `[batch, n]`, of an Open Inference Protocol datatype such as `FP32` or `BYTES`.
///
/// # Errors
/// If there is no such datatype.
pub fn identity(datatype: &str) -> Result<ModelProto> {
    let data_type = DataType::from_oip(datatype)
        .with_context(|| format!("`{datatype}` is not a datatype of the protocol"))?;
    Ok(identity_of(data_type, &[BATCH, Dim::Named("n")]))
}

/// `y` = `x`, FP32 `[1, 4]`: a model without a batch dimension.
pub fn unbatched() -> ModelProto {
    identity_of(DataType::Float, &[Dim::Fixed(1), Dim::Fixed(4)])
}

fn identity_of(data_type: DataType, dims: &[Dim]) -> ModelProto {
    GraphBuilder::new("identity")
        .input("x", data_type, dims)
        .output("y", data_type, dims)
        .node("Identity", &["x"], &["y"])
        .into_model()
}

/// `y` = `x` · `factor`, FP32 `[batch, 4]`; versions with different factors can be told apart by their
/// replies.
pub fn scale(factor: f32) -> ModelProto {
    GraphBuilder::new("scale")
        .input("x", DataType::Float, &ROW_OF_4)
        .output("y", DataType::Float, &ROW_OF_4)
        .initializer(TensorProto::of_f32("factor", &[], &[factor]))
        .node("Mul", &["x", "factor"], &["y"])
        .into_model()
}

/// `y` = `x` · factor, its four equal values in a file at this path from the model's.
pub fn scale_in_file(location: &str) -> ModelProto {
    GraphBuilder::new("scale")
        .input("x", DataType::Float, &ROW_OF_4)
        .output("y", DataType::Float, &ROW_OF_4)
        .initializer(TensorProto::in_file("factor", &[4], location))
        .node("Mul", &["x", "factor"], &["y"])
        .into_model()
}

/// `y` = `x` · `mask`, FP32 `[batch, sequence]`, and `sum` over it, `[batch, 1]`: what is masked changes neither.
pub fn masked() -> ModelProto {
    const ROW: [Dim; 2] = [BATCH, Dim::Named("sequence")];
    GraphBuilder::new("masked")
        .input("x", DataType::Float, &ROW)
        .input("mask", DataType::Float, &ROW)
        .output("y", DataType::Float, &ROW)
        .output("sum", DataType::Float, &[BATCH, Dim::Fixed(1)])
        .initializer(TensorProto::of_i64("along", &[1], &[1]))
        .node("Mul", &["x", "mask"], &["y"])
        .node("ReduceSum", &["y", "along"], &["sum"])
        .into_model()
}

/// `y` = `x` twice over, FP32 `[batch, sequence]` to `[batch, doubled]`.
pub fn doubled() -> ModelProto {
    GraphBuilder::new("doubled")
        .input("x", DataType::Float, &[BATCH, Dim::Named("sequence")])
        .output("y", DataType::Float, &[BATCH, Dim::Named("doubled")])
        .node_with("Concat", &["x", "x"], &["y"], vec![AttributeProto::of_int("axis", 1)])
        .into_model()
}

/// Dense layers with ReLU between them: FP32 `[batch, sizes[0]]` to `[batch, sizes[last]]`.
///
/// # Panics
/// With fewer than two sizes.
pub fn mlp(sizes: &[usize]) -> ModelProto {
    assert!(sizes.len() >= 2, "an MLP has at least an input and an output size, got {sizes:?}");
    let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
    let mut weights = Weights::new();
    let mut graph = GraphBuilder::new("mlp").input("x", DataType::Float, &[BATCH, fixed(first)]).output(
        "y",
        DataType::Float,
        &[BATCH, fixed(last)],
    );
    let mut from = "x".to_owned();
    for (layer, pair) in sizes.windows(2).enumerate() {
        let (inputs, outputs) = (pair[0], pair[1]);
        let (weight, bias) = (format!("weight_{layer}"), format!("bias_{layer}"));
        let is_last = layer + 2 == sizes.len();
        let dense = if is_last { "y".to_owned() } else { format!("dense_{layer}") };
        graph = graph
            .initializer(weights.tensor(&weight, &[inputs, outputs], inputs))
            .initializer(weights.tensor(&bias, &[outputs], inputs))
            .node("Gemm", &[&from, &weight, &bias], &[&dense]);
        if !is_last {
            from = format!("relu_{layer}");
            graph = graph.node("Relu", &[&dense], &[&from]);
        }
    }
    graph.into_model()
}

/// Convolutions, global mean, dense: FP32 `[batch, 3, HEAVY_IMAGE, HEAVY_IMAGE]` to `[batch, 10]`.
///
/// 25 to 29 ms an item with one intra-op thread, and as much for each further item of a batch (medians of 60
/// runs each; ONNX Runtime 1.31.1, Xeon with AVX-512, 2 cores; 2026-11-22).
pub fn heavy() -> ModelProto {
    convolutions("heavy", HEAVY_IMAGE)
}

/// The net of [`heavy`] for images of [`LIGHT_IMAGE`]: a tenth of its work an item, which likewise no batch makes cheaper.
pub fn light() -> ModelProto {
    convolutions("light", LIGHT_IMAGE)
}

fn convolutions(name: &str, image: i64) -> ModelProto {
    let image = Dim::Fixed(image);
    let channels_in = HEAVY_CHANNELS[0];
    let channels_out = HEAVY_CHANNELS[HEAVY_CHANNELS.len() - 1];
    let mut weights = Weights::new();
    let mut graph = GraphBuilder::new(name)
        .input("x", DataType::Float, &[BATCH, fixed(channels_in), image, image])
        .output("y", DataType::Float, &[BATCH, fixed(CLASSES)]);
    let mut from = "x".to_owned();
    for (layer, pair) in HEAVY_CHANNELS.windows(2).enumerate() {
        let (inputs, outputs) = (pair[0], pair[1]);
        let (weight, bias) = (format!("weight_{layer}"), format!("bias_{layer}"));
        let (conv, relu) = (format!("conv_{layer}"), format!("relu_{layer}"));
        let padding = vec![AttributeProto::of_ints("pads", &[1, 1, 1, 1])];
        graph = graph
            .initializer(weights.tensor(&weight, &[outputs, inputs, 3, 3], inputs * 9))
            .initializer(weights.tensor(&bias, &[outputs], inputs * 9))
            .node_with("Conv", &[&from, &weight, &bias], &[&conv], padding)
            .node("Relu", &[&conv], &[&relu]);
        from = relu;
    }
    graph
        .initializer(weights.tensor("weight_out", &[channels_out, CLASSES], channels_out))
        .initializer(weights.tensor("bias_out", &[CLASSES], channels_out))
        .node("GlobalAveragePool", &[&from], &["mean"])
        .node_with("Flatten", &["mean"], &["features"], vec![AttributeProto::of_int("axis", 1)])
        .node("Gemm", &["features", "weight_out", "bias_out"], &["y"])
        .into_model()
}

/// `y` = `x` exactly, FP32 `[batch, 4]`, after about `millis_hint` ms of one thread's work, whatever the
/// batch.
///
/// A `Loop` multiplies a matrix of ones by a permutation, which leaves it all ones, and `x` is multiplied by
/// its smallest element. ONNX Runtime folds neither the loop nor its result away, and looks at its terminate
/// flag between trips.
///
/// One intra-op thread: hints of 10, 100 and 500 took 8 to 10, 74 to 108 and 350 to 500 ms (medians; ONNX
/// Runtime 1.31.1, Xeon with AVX-512, 2 cores; 2026-11-22). Without AVX-512 expect longer.
pub fn slow(millis_hint: u64) -> ModelProto {
    let trips = i64::try_from(millis_hint.saturating_mul(SLOW_TRIPS_PER_MILLI)).unwrap_or(i64::MAX);
    let side = SLOW_MATRIX as i64;
    let mut rotation = vec![0.0; SLOW_MATRIX * SLOW_MATRIX];
    for row in 0..SLOW_MATRIX {
        rotation[row * SLOW_MATRIX + (row + 1) % SLOW_MATRIX] = 1.0;
    }
    let ones = vec![1.0; SLOW_MATRIX * SLOW_MATRIX];
    GraphBuilder::new("slow")
        .input("x", DataType::Float, &ROW_OF_4)
        .output("y", DataType::Float, &ROW_OF_4)
        .initializer(TensorProto::of_i64("trips", &[], &[trips]))
        .initializer(TensorProto::of_f32("rotation", &[side, side], &rotation))
        .initializer(TensorProto::of_f32("ones", &[side, side], &ones))
        .node_with(
            "Loop",
            &["trips", "", "ones"],
            &["rotated"],
            vec![AttributeProto::of_graph("body", slow_body())],
        )
        .node_with("ReduceMin", &["rotated"], &["one"], vec![AttributeProto::of_int("keepdims", 0)])
        .node("Mul", &["x", "one"], &["y"])
        .into_model()
}

fn slow_body() -> GraphProto {
    let square = [fixed(SLOW_MATRIX), fixed(SLOW_MATRIX)];
    GraphBuilder::new("slow_body")
        .input("trip", DataType::Int64, &[])
        .input("condition", DataType::Bool, &[])
        .input("matrix", DataType::Float, &square)
        .output("condition_out", DataType::Bool, &[])
        .output("matrix_out", DataType::Float, &square)
        .node("Identity", &["condition"], &["condition_out"])
        .node("MatMul", &["matrix", "rotation"], &["matrix_out"])
        .into_graph()
}

/// `y` = `x`, FP32 `[batch, 4]`, unless an element of the batch is negative: then the run fails.
///
/// A negative element asks `Reshape` for rows of five, whose sizes ONNX Runtime compares on the host; CUDA's
/// `Gather` would answer an index out of range with zeros. The target is a sum because ONNX Runtime's reshape
/// fusion would replace one unknown part of a `Concat` by -1, which fits always.
pub fn failing() -> ModelProto {
    let to_int64 = AttributeProto::of_int("to", i32::from(DataType::Int64).into());
    let to_scalar = AttributeProto::of_int("keepdims", 0);
    GraphBuilder::new("failing")
        .input("x", DataType::Float, &ROW_OF_4)
        .output("y", DataType::Float, &ROW_OF_4)
        .initializer(TensorProto::of_f32("zero", &[], &[0.0]))
        // Reshape reads a zero as "this dimension stays".
        .initializer(TensorProto::of_i64("same", &[2], &[0, 4]))
        .initializer(TensorProto::of_i64("wider", &[2], &[0, 1]))
        .node("Less", &["x", "zero"], &["is_negative"])
        .node_with("Cast", &["is_negative"], &["negative"], vec![to_int64])
        .node_with("ReduceMax", &["negative"], &["any_negative"], vec![to_scalar])
        .node("Mul", &["any_negative", "wider"], &["widening"])
        .node("Add", &["same", "widening"], &["target"])
        .node("Reshape", &["x", "target"], &["y"])
        .into_model()
}

fn fixed(size: usize) -> Dim {
    Dim::Fixed(size as i64)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::onnx::Message;

    fn every_model() -> Vec<ModelProto> {
        let datatypes = [
            "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16",
            "FP32", "FP64", "BYTES",
        ];
        let mut models: Vec<_> = datatypes.iter().map(|datatype| identity(datatype).unwrap()).collect();
        models.extend([
            scale(2.0),
            masked(),
            doubled(),
            unbatched(),
            mlp(MLP_TINY),
            heavy(),
            light(),
            encoder(),
            slow(10),
            failing(),
        ]);
        models
    }

    #[test]
    fn models_have_the_same_bytes_every_time() {
        for (first, second) in every_model().iter().zip(&every_model()) {
            assert_eq!(first.encode_to_vec(), second.encode_to_vec());
        }
    }

    /// Two calls in one process cannot show a changed random generator; a recorded digest can.
    #[test]
    fn weights_are_those_recorded() {
        let digest = Sha256::digest(mlp(MLP_TINY).encode_to_vec());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "8acd5cdc5a5169fae3581c225ee80359c11635730bf858199d8dcdb00a640b97");
    }

    #[test]
    fn models_decode_to_what_was_encoded() {
        for model in every_model() {
            let decoded = ModelProto::decode(model.encode_to_vec().as_slice()).unwrap();
            assert_eq!(decoded, model);
        }
    }

    #[test]
    fn unknown_datatypes_are_refused() {
        assert!(identity("STRING").is_err());
    }
}
