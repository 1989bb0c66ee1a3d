//! The inference response of the Open Inference Protocol v2.

use super::tensor::Tensor;

/// One inference response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InferResponse {
    /// The model that ran.
    pub model_name: String,
    /// The version that ran.
    pub model_version: Option<String>,
    /// The request's `id`.
    pub id: Option<String>,
    /// The outputs asked for, in the order asked for, or the model's order.
    pub outputs: Vec<Tensor>,
}

impl InferResponse {
    /// The output of this name.
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|output| output.name == name)
    }
}
