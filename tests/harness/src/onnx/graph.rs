//! Building graphs and models.

use super::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
};

/// Old enough for every execution provider's kernels, new enough for bfloat16 in `Identity` (opset 16).
const OPSET_VERSION: i64 = 17;
/// The IR version published with [`OPSET_VERSION`].
const IR_VERSION: i64 = 8;

/// A dimension of a graph's input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(i64),
    /// Any size; the same name means the same size.
    Named(&'static str),
}

/// Builds a graph node by node.
///
/// Checks nothing: names that do not meet are for ONNX Runtime to find when it loads the model.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: GraphProto,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self { graph: GraphProto { name: name.to_owned(), ..GraphProto::default() } }
    }

    /// Adds a tensor input; no dimensions make it a scalar.
    #[must_use]
    pub fn input(mut self, name: &str, data_type: DataType, dims: &[Dim]) -> Self {
        self.graph.input.push(value_info(name, data_type, dims));
        self
    }

    /// Adds a tensor output, written by the node that has an output of this name.
    #[must_use]
    pub fn output(mut self, name: &str, data_type: DataType, dims: &[Dim]) -> Self {
        self.graph.output.push(value_info(name, data_type, dims));
        self
    }

    /// Adds a constant, known to nodes by the tensor's name.
    #[must_use]
    pub fn initializer(mut self, tensor: TensorProto) -> Self {
        self.graph.initializer.push(tensor);
        self
    }

    /// Adds a node without attributes. Nodes go in an order in which every input exists already.
    #[must_use]
    pub fn node(self, op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.node_with(op_type, inputs, outputs, Vec::new())
    }

    /// Adds a node with attributes.
    #[must_use]
    pub fn node_with(
        mut self,
        op_type: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> Self {
        self.graph.node.push(NodeProto {
            // Errors of ONNX Runtime quote it, so it says graph and place.
            name: format!("{}/{op_type}_{}", self.graph.name, self.graph.node.len()),
            op_type: op_type.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            attribute,
            ..NodeProto::default()
        });
        self
    }

    /// The graph alone, for a node's body.
    pub fn into_graph(self) -> GraphProto {
        self.graph
    }

    /// The graph as a model.
    pub fn into_model(self) -> ModelProto {
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "millrace-harness".to_owned(),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET_VERSION }],
            graph: Some(self.graph),
            ..ModelProto::default()
        }
    }
}

impl AttributeProto {
    /// A list of integers.
    pub fn of_ints(name: &str, values: &[i64]) -> Self {
        Self {
            name: name.to_owned(),
            ints: values.to_vec(),
            r#type: AttributeType::Ints.into(),
            ..Self::default()
        }
    }

    /// An integer.
    pub fn of_int(name: &str, value: i64) -> Self {
        Self { name: name.to_owned(), i: Some(value), r#type: AttributeType::Int.into(), ..Self::default() }
    }

    /// A graph.
    pub fn of_graph(name: &str, graph: GraphProto) -> Self {
        Self {
            name: name.to_owned(),
            g: Some(Box::new(graph)),
            r#type: AttributeType::Graph.into(),
            ..Self::default()
        }
    }
}

fn value_info(name: &str, data_type: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims.iter().map(|dim| Dimension {
        value: Some(match dim {
            Dim::Fixed(size) => DimensionValue::DimValue(*size),
            Dim::Named(name) => DimensionValue::DimParam((*name).to_owned()),
        }),
    });
    let tensor =
        TensorTypeProto { elem_type: data_type.into(), shape: Some(TensorShapeProto { dim: dim.collect() }) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: Some(TypeValue::Tensor(tensor)) }),
    }
}
