//! Bytes to messages. Everything here is hostile until it has passed.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::codec::{
    BINARY_DATA, BINARY_DATA_SIZE, Limits, MAX_ID_BYTES, MAX_NAME_BYTES, MAX_PARAMETERS, MAX_RANK,
    MAX_TENSORS,
};
use super::elements::{self, ElementError};
use super::request::{InferRequest, Parameter, Parameters, RequestedOutput};
use super::response::InferResponse;
use super::tensor::{Datatype, Tensor, TensorError, element_count};

/// A body that is not a valid message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The body or a tensor is above [`Limits`].
    #[error("{what} is {actual}, the limit is {limit}")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
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
    /// A tensor has no data, has both forms, or its binary size is not a count of bytes in the body.
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
/// Binary tensors are slices of `bytes`, not copies. JSON tensors allocate at most about eight times their text.
///
/// # Errors
/// [`DecodeError`]; nothing is kept of a body that fails.
pub fn decode_request(
    bytes: &Bytes,
    header_length: Option<usize>,
    limits: &Limits,
) -> Result<InferRequest, DecodeError> {
    let (header, mut rest) = split(bytes, header_length, limits)?;
    let raw: RawRequest<'_> = serde_json::from_slice(header)?;
    let inputs = tensors(raw.inputs.0, &mut rest, limits)?;
    let outputs = raw
        .outputs
        .0
        .into_iter()
        .map(|output| RequestedOutput {
            name: output.name.0.into_owned(),
            binary: match output.parameters.0.get(BINARY_DATA) {
                Some(Parameter::Bool(binary)) => Some(*binary),
                _ => None,
            },
        })
        .collect();
    Ok(InferRequest { id: raw.id.map(|id| id.0.into_owned()), parameters: raw.parameters.0, inputs, outputs })
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
    let raw: RawResponse<'_> = serde_json::from_slice(header)?;
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
            what: "the body's size in bytes",
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

fn tensors(raw: Vec<RawTensor<'_>>, rest: &mut Bytes, limits: &Limits) -> Result<Vec<Tensor>, DecodeError> {
    let tensors = raw.into_iter().map(|tensor| tensor.read(rest, limits)).collect::<Result<Vec<_>, _>>()?;
    if rest.is_empty() { Ok(tensors) } else { Err(DecodeError::TrailingBytes(rest.len())) }
}

#[derive(serde::Deserialize)]
struct RawRequest<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a, MAX_ID_BYTES>>,
    #[serde(default)]
    parameters: RawParameters,
    #[serde(borrow)]
    inputs: Bounded<RawTensor<'a>, MAX_TENSORS>,
    #[serde(borrow, default)]
    outputs: Bounded<RawOutput<'a>, MAX_TENSORS>,
}

#[derive(serde::Deserialize)]
struct RawResponse<'a> {
    #[serde(borrow)]
    model_name: Text<'a, MAX_NAME_BYTES>,
    #[serde(borrow, default)]
    model_version: Option<Text<'a, MAX_NAME_BYTES>>,
    #[serde(borrow, default)]
    id: Option<Text<'a, MAX_ID_BYTES>>,
    #[serde(borrow)]
    outputs: Bounded<RawTensor<'a>, MAX_TENSORS>,
}

#[derive(serde::Deserialize)]
struct RawOutput<'a> {
    #[serde(borrow)]
    name: Text<'a, MAX_NAME_BYTES>,
    #[serde(default)]
    parameters: RawParameters,
}

#[derive(serde::Deserialize)]
struct RawTensor<'a> {
    #[serde(borrow)]
    name: Text<'a, MAX_NAME_BYTES>,
    shape: Bounded<i64, MAX_RANK>,
    #[serde(borrow)]
    datatype: Text<'a, 32>,
    #[serde(default)]
    parameters: RawParameters,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

impl RawTensor<'_> {
    fn read(self, rest: &mut Bytes, limits: &Limits) -> Result<Tensor, DecodeError> {
        let name = self.name.0.into_owned();
        let shape = self.shape.0;
        let fail = |source| DecodeError::Tensor { name: name.clone(), source };
        let datatype: Datatype = self.datatype.0.parse().map_err(fail)?;
        let elements = element_count(&shape).map_err(fail)?;
        if elements > limits.max_elements {
            return Err(DecodeError::TooLarge {
                what: "a tensor's number of elements",
                actual: elements,
                limit: limits.max_elements,
            });
        }
        let problem = |problem| DecodeError::Data { name: name.clone(), problem };
        let data = match (self.data, self.parameters.0.get(BINARY_DATA_SIZE)) {
            (Some(raw), None) => elements::parse(raw.get(), datatype, &shape)
                .map(Bytes::from)
                .map_err(|source| DecodeError::Element { name: name.clone(), source })?,
            (None, Some(Parameter::Int(size))) => {
                let size = usize::try_from(*size)
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

/// An array of at most `N` items: refused while reading, before the rest is allocated.
struct Bounded<T, const N: usize>(Vec<T>);

impl<T, const N: usize> Default for Bounded<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Items<T, N> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {N} items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = sequence.next_element()? {
                    if items.len() == N {
                        return Err(serde::de::Error::invalid_length(N + 1, &self));
                    }
                    items.push(item);
                }
                Ok(items)
            }
        }
        deserializer.deserialize_seq(Items::<T, N>(PhantomData)).map(Self)
    }
}

/// Text of at most `N` bytes, borrowed where it has no escapes.
struct Text<'a, const N: usize>(Cow<'a, str>);

impl<'de: 'a, 'a, const N: usize> Deserialize<'de> for Text<'a, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<'a, const N: usize>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a, const N: usize> Visitor<'de> for TextVisitor<'a, N> {
            type Value = Cow<'a, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string of at most {N} bytes")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Cow<'a, str>, E> {
                if text.len() > N {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cow<'a, str>, E> {
                if text.len() > N {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor::<N>(PhantomData)).map(Self)
    }
}

#[derive(Default)]
struct RawParameters(Parameters);

impl<'de> Deserialize<'de> for RawParameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Parameters;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX_PARAMETERS} scalars")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut parameters = Parameters::new();
                while let Some((name, value)) = map.next_entry::<Text<'de, MAX_NAME_BYTES>, Parameter>()? {
                    if parameters.len() == MAX_PARAMETERS {
                        return Err(serde::de::Error::invalid_length(MAX_PARAMETERS + 1, &self));
                    }
                    parameters.insert(name.0.into_owned(), value);
                }
                Ok(parameters)
            }
        }
        deserializer.deserialize_map(Entries).map(Self)
    }
}
