//! A transformer encoder of MiniLM's size.

use super::{BATCH, Weights, fixed};
use crate::onnx::{AttributeProto, DataType, GraphBuilder, ModelProto, TensorProto};

/// Tokens of one row that [`encoder`] takes.
pub const ENCODER_TOKENS: usize = 64;
/// Token ids that [`encoder`] knows. MiniLM's 30,522 would cost 43 MB of file and, being looked up, no time.
pub const ENCODER_VOCABULARY: usize = 2048;

const LAYERS: usize = 6;
const HIDDEN: usize = 384;
const HEADS: usize = 12;
const INNER: usize = 1536;

/// Token ids, INT64 `[batch, ENCODER_TOKENS]`, to the mean of the last layer, FP32 `[batch, 384]`: the layers, widths and heads of
/// MiniLM-L6, 10.6 million weights (43 MB) beside the embeddings. Without a mask: every token counts.
pub fn encoder() -> ModelProto {
    let mut encoder = Encoder { weights: Weights::new(), graph: Some(GraphBuilder::new("encoder")) };
    encoder.describe();
    let mut from = encoder.embed();
    for layer in 0..LAYERS {
        let attended = encoder.attend(layer, &from);
        from = encoder.feed_forward(layer, &attended);
    }
    // Before opset 18 the axes of a mean are an attribute.
    let axes = vec![AttributeProto::of_ints("axes", &[1]), AttributeProto::of_int("keepdims", 0)];
    encoder.change(|graph| graph.node_with("ReduceMean", &[&from], &["y"], axes));
    encoder.graph.take().expect("put back after every change").into_model()
}

struct Encoder {
    weights: Weights,
    /// Taken out only while it changes.
    graph: Option<GraphBuilder>,
}

impl Encoder {
    fn change(&mut self, step: impl FnOnce(GraphBuilder) -> GraphBuilder) {
        self.graph = self.graph.take().map(step);
    }

    fn constant(&mut self, tensor: TensorProto) {
        self.change(|graph| graph.initializer(tensor));
    }

    fn weight(&mut self, name: &str, dims: &[usize], fan_in: usize) {
        let tensor = self.weights.tensor(name, dims, fan_in);
        self.constant(tensor);
    }

    fn node(&mut self, op_type: &str, inputs: &[&str], output: String) -> String {
        self.change(|graph| graph.node(op_type, inputs, &[&output]));
        output
    }

    fn describe(&mut self) {
        self.change(|graph| {
            graph.input("x", DataType::Int64, &[BATCH, fixed(ENCODER_TOKENS)]).output(
                "y",
                DataType::Float,
                &[BATCH, fixed(HIDDEN)],
            )
        });
        let (heads, width) = (HEADS as i64, (HIDDEN / HEADS) as i64);
        self.constant(TensorProto::of_i64("apart", &[4], &[0, 0, heads, width]));
        self.constant(TensorProto::of_i64("together", &[3], &[0, 0, HIDDEN as i64]));
        self.constant(TensorProto::of_f32("root_of_width", &[], &[(width as f32).sqrt()]));
        self.constant(TensorProto::of_f32("root_of_two", &[], &[std::f32::consts::SQRT_2]));
        self.constant(TensorProto::of_f32("one", &[], &[1.0]));
        self.constant(TensorProto::of_f32("half", &[], &[0.5]));
    }

    fn embed(&mut self) -> String {
        self.weight("tokens", &[ENCODER_VOCABULARY, HIDDEN], HIDDEN);
        self.weight("positions", &[ENCODER_TOKENS, HIDDEN], HIDDEN);
        let words = self.node("Gather", &["tokens", "x"], "words".into());
        let placed = self.node("Add", &[&words, "positions"], "placed".into());
        self.normalise("embedded", &placed)
    }

    /// Multi-head self-attention, added to its input and normalised.
    fn attend(&mut self, layer: usize, from: &str) -> String {
        let name = |part: &str| format!("layer_{layer}_{part}");
        let query = self.head(&name("query"), from, &[0, 2, 1, 3]);
        let key = self.head(&name("key"), from, &[0, 2, 3, 1]);
        let value = self.head(&name("value"), from, &[0, 2, 1, 3]);
        let products = self.node("MatMul", &[&query, &key], name("products"));
        let scores = self.node("Div", &[&products, "root_of_width"], name("scores"));
        let softmax = vec![AttributeProto::of_int("axis", -1)];
        let shares = name("shares");
        self.change(|graph| graph.node_with("Softmax", &[&scores], &[&shares], softmax));
        let mixed = self.node("MatMul", &[&shares, &value], name("mixed"));
        let joined = self.transpose(name("joined"), &mixed, &[0, 2, 1, 3]);
        let flat = self.node("Reshape", &[&joined, "together"], name("flat"));
        let projected = self.dense(&name("projected"), &flat, HIDDEN, HIDDEN);
        let sum = self.node("Add", &[from, &projected], name("attention_sum"));
        self.normalise(&name("attended"), &sum)
    }

    fn feed_forward(&mut self, layer: usize, from: &str) -> String {
        let name = |part: &str| format!("layer_{layer}_{part}");
        let wide = self.dense(&name("wide"), from, HIDDEN, INNER);
        let bent = self.gelu(&name("bent"), &wide);
        let narrow = self.dense(&name("narrow"), &bent, INNER, HIDDEN);
        let sum = self.node("Add", &[from, &narrow], name("sum"));
        self.normalise(&name("out"), &sum)
    }

    /// A projection split into heads, its axes in this order.
    fn head(&mut self, name: &str, from: &str, order: &[i64]) -> String {
        let dense = self.dense(name, from, HIDDEN, HIDDEN);
        let split = self.node("Reshape", &[&dense, "apart"], format!("{name}_split"));
        self.transpose(format!("{name}_turned"), &split, order)
    }

    fn transpose(&mut self, to: String, from: &str, order: &[i64]) -> String {
        let order = vec![AttributeProto::of_ints("perm", order)];
        self.change(|graph| graph.node_with("Transpose", &[from], &[&to], order));
        to
    }

    fn dense(&mut self, name: &str, from: &str, inputs: usize, outputs: usize) -> String {
        let (weight, bias) = (format!("{name}_weight"), format!("{name}_bias"));
        self.weight(&weight, &[inputs, outputs], inputs);
        self.weight(&bias, &[outputs], inputs);
        let product = self.node("MatMul", &[from, &weight], format!("{name}_product"));
        self.node("Add", &[&product, &bias], name.to_owned())
    }

    /// x/2 · (1 + erf(x/√2)), in the nodes that exporters write and ONNX Runtime fuses.
    fn gelu(&mut self, name: &str, from: &str) -> String {
        let scaled = self.node("Div", &[from, "root_of_two"], format!("{name}_scaled"));
        let erf = self.node("Erf", &[&scaled], format!("{name}_erf"));
        let raised = self.node("Add", &[&erf, "one"], format!("{name}_raised"));
        let product = self.node("Mul", &[from, &raised], format!("{name}_product"));
        self.node("Mul", &[&product, "half"], name.to_owned())
    }

    fn normalise(&mut self, name: &str, from: &str) -> String {
        let (scale, bias) = (format!("{name}_scale"), format!("{name}_shift"));
        self.constant(TensorProto::of_f32(&scale, &[HIDDEN as i64], &[1.0; HIDDEN]));
        self.constant(TensorProto::of_f32(&bias, &[HIDDEN as i64], &[0.0; HIDDEN]));
        self.node("LayerNormalization", &[from, &scale, &bias], name.to_owned())
    }
}
