//! Bytes to messages. Everything here is hostile until it has passed.

use bytes::Bytes;

use super::codec::Limits;
use super::document::{Dimension, Object, RawOutput, RawRequest, RawResponse, RawTensor};
use super::elements::{self, ElementError};
use super::request::{InferRequest, Parameter, RequestedOutput};
use super::response::InferResponse;
use super::tensor::{Datatype, Tensor, TensorError, extent};

/// A body that is not a valid message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The body or a tensor is above [`Limits`].
    #[error("{what} is {actual}, the limit is {limit}")]
    TooLarge {
        /// What is too large, with its unit.
        what: String,
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The JSON is malformed or of the wrong structure.
    #[error("malformed JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// `Inference-Header-Content-Length` points behind the end of the body.
    #[error("the JSON header is said to have {header_length} bytes, the body has {body_length}")]
    HeaderLength {
        /// As declared.
        header_length: usize,
        /// As received.
        body_length: usize,
    },
    /// A tensor's parts contradict each other.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// Tensor name.
        name: String,
        /// What is wrong.
        source: TensorError,
    },
    /// A tensor's JSON data does not fit its shape and datatype.
    #[error("tensor `{name}`: {source}")]
    Element {
        /// Tensor name.
        name: String,
        /// What is wrong.
        source: ElementError,
    },
    /// A tensor has no data, has both forms, or a parameter of it that says how is not what it must be.
    #[error("tensor `{name}`: {problem}")]
    Data {
        /// Tensor name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Bytes follow the last binary tensor.
    #[error("{0} bytes follow the last tensor")]
    TrailingBytes(usize),
}

/// Decodes a request.
///
/// Binary tensors are slices of `bytes`, not copies. JSON tensors allocate at most about four times their text.
///
/// # Errors
/// [`DecodeError`]; nothing is kept of a body that fails.
pub fn decode_request(
    bytes: &Bytes,
    header_length: Option<usize>,
    limits: &Limits,
) -> Result<InferRequest, DecodeError> {
    let (header, mut rest) = split(bytes, header_length, limits)?;
    let Object(raw) = serde_json::from_slice::<Object<RawRequest<'_>>>(header)?;
    let inputs = tensors(raw.inputs.0, &mut rest, limits)?;
    let outputs = raw.outputs.map_or_else(Vec::new, |outputs| outputs.0);
    let outputs =
        outputs.into_iter().map(|Object(output)| requested(output)).collect::<Result<Vec<_>, _>>()?;
    Ok(InferRequest { id: raw.id.map(|id| id.0.into_owned()), parameters: raw.parameters.0, inputs, outputs })
}

fn requested(output: RawOutput<'_>) -> Result<RequestedOutput, DecodeError> {
    let name = output.name.0.into_owned();
    let binary = match output.parameters.binary_data {
        None => None,
        Some(Parameter::Bool(binary)) => Some(binary),
        Some(_) => return Err(DecodeError::Data { name, problem: "`binary_data` is not true or false" }),
    };
    Ok(RequestedOutput { name, binary })
}

/// Decodes a response; as [`decode_request`].
///
/// # Errors
/// [`DecodeError`].
pub fn decode_response(
    bytes: &Bytes,
    header_length: Option<usize>,
    limits: &Limits,
) -> Result<InferResponse, DecodeError> {
    let (header, mut rest) = split(bytes, header_length, limits)?;
    let Object(raw) = serde_json::from_slice::<Object<RawResponse<'_>>>(header)?;
    let outputs = tensors(raw.outputs.0, &mut rest, limits)?;
    Ok(InferResponse {
        model_name: raw.model_name.0.into_owned(),
        model_version: raw.model_version.map(|version| version.0.into_owned()),
        id: raw.id.map(|id| id.0.into_owned()),
        outputs,
    })
}

fn split<'a>(
    bytes: &'a Bytes,
    header_length: Option<usize>,
    limits: &Limits,
) -> Result<(&'a [u8], Bytes), DecodeError> {
    if bytes.len() > limits.max_body_bytes {
        return Err(DecodeError::TooLarge {
            what: "the body's size in bytes".to_owned(),
            actual: bytes.len(),
            limit: limits.max_body_bytes,
        });
    }
    match header_length {
        None => Ok((bytes, Bytes::new())),
        Some(length) if length <= bytes.len() => Ok((&bytes[..length], bytes.slice(length..))),
        Some(header_length) => Err(DecodeError::HeaderLength { header_length, body_length: bytes.len() }),
    }
}

fn tensors(
    raw: Vec<Object<RawTensor<'_>>>,
    rest: &mut Bytes,
    limits: &Limits,
) -> Result<Vec<Tensor>, DecodeError> {
    let read = |Object(tensor): Object<RawTensor<'_>>| tensor.read(rest, limits);
    let tensors = raw.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if rest.is_empty() { Ok(tensors) } else { Err(DecodeError::TrailingBytes(rest.len())) }
}

impl RawTensor<'_> {
    fn read(self, rest: &mut Bytes, limits: &Limits) -> Result<Tensor, DecodeError> {
        let name = self.name.0.into_owned();
        let shape: Vec<i64> = self.shape.0.into_iter().map(|Dimension(size)| size).collect();
        let fail = |source| DecodeError::Tensor { name: name.clone(), source };
        let datatype: Datatype = self.datatype.0.parse().map_err(fail)?;
        let elements = extent(&shape).map_err(fail)?;
        if elements > limits.max_elements {
            return Err(DecodeError::TooLarge {
                what: format!("tensor `{name}`: the number of elements"),
                actual: elements,
                limit: limits.max_elements,
            });
        }
        let problem = |problem| DecodeError::Data { name: name.clone(), problem };
        let data = match (self.data, self.parameters.binary_data_size) {
            (Some(raw), None) => elements::parse(raw.get(), datatype, &shape)
                .map(Bytes::from)
                .map_err(|source| DecodeError::Element { name: name.clone(), source })?,
            (None, Some(Parameter::Int(size @ 0..))) => {
                let size = usize::try_from(size)
                    .ok()
                    .filter(|&size| size <= rest.len())
                    .ok_or_else(|| problem("`binary_data_size` is more than the body holds"))?;
                rest.split_to(size)
            }
            (None, Some(_)) => return Err(problem("`binary_data_size` is not a count of bytes")),
            (Some(_), Some(_)) => return Err(problem("has both `data` and `binary_data_size`")),
            (None, None) => return Err(problem("has neither `data` nor `binary_data_size`")),
        };
        let tensor = Tensor { name, datatype, shape, data };
        match tensor.check() {
            Ok(()) => Ok(tensor),
            Err(source) => Err(DecodeError::Tensor { name: tensor.name, source }),
        }
    }
}
