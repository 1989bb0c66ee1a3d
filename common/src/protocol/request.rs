//! The inference request of the Open Inference Protocol v2.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use super::tensor::Tensor;

/// One inference request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// The caller's id, returned unchanged in the response body.
    pub id: Option<String>,
    /// Parameters of the request, for the model or the server.
    pub parameters: Parameters,
    /// Input tensors, in any order.
    pub inputs: Vec<Tensor>,
    /// Outputs wanted; empty means all of them.
    pub outputs: Vec<RequestedOutput>,
}

/// An output that the caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    /// The model's name for the output.
    pub name: String,
    /// `binary_data`: raw bytes after the JSON header. `None` follows the request's `binary_data_output`.
    pub binary: Option<bool>,
}

impl RequestedOutput {
    /// An output in the request's default encoding.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), binary: None }
    }
}

impl InferRequest {
    /// The request parameter that makes binary the default for outputs.
    pub const BINARY_DATA_OUTPUT: &str = "binary_data_output";

    /// Whether outputs come as binary unless they say otherwise; false without the parameter.
    pub fn binary_data_output(&self) -> bool {
        self.parameters.get(Self::BINARY_DATA_OUTPUT) == Some(&Parameter::Bool(true))
    }
}

/// `parameters` objects: flat, with scalar values, sorted by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// A parameter's value. The protocol allows scalars only, which also keeps hostile nesting out.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An integer above `i64::MAX`.
    Uint(u64),
    /// Any other number.
    Float(f64),
    /// Text.
    String(String),
}

impl Serialize for Parameter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Uint(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::String(value) => serializer.serialize_str(value),
        }
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, number or boolean")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Parameter, E> {
                Ok(Parameter::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Parameter, E> {
                Ok(i64::try_from(value).map_or(Parameter::Uint(value), Parameter::Int))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Parameter, E> {
                Ok(Parameter::Float(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Parameter, E> {
                Ok(Parameter::String(value.to_owned()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}
