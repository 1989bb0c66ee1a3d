//! Messages to bytes. Each tensor is copied once, into the body.

use super::codec::{BINARY_DATA, BINARY_DATA_SIZE, Body, Encoding};
use super::elements::{self, NotUtf8};
use super::request::{InferRequest, Parameter};
use super::tensor::{Datatype, Tensor};

/// A tensor to be written, borrowed from wherever its bytes are.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The model's name for it.
    pub name: &'a str,
    /// Element type.
    pub datatype: Datatype,
    /// Dimensions.
    pub shape: &'a [i64],
    /// Row-major little-endian elements.
    pub data: &'a [u8],
    /// As raw bytes behind the header, or as JSON.
    pub encoding: Encoding,
}

impl Tensor {
    /// Borrows the tensor for encoding.
    pub fn view(&self, encoding: Encoding) -> TensorView<'_> {
        TensorView {
            name: &self.name,
            datatype: self.datatype,
            shape: &self.shape,
            data: &self.data,
            encoding,
        }
    }
}

/// A message that cannot be written in the encoding asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A BYTES tensor that is not text, as JSON.
    #[error("tensor `{name}`: {source}")]
    NotUtf8 {
        /// Tensor name.
        name: String,
        /// Which element.
        source: NotUtf8,
    },
    /// A parameter that is NaN or infinite. Unlike a tensor's elements it has no agreed spelling in JSON.
    #[error("parameter `{name}` is not a finite number")]
    NotFinite {
        /// Parameter name.
        name: String,
    },
}

/// Encodes a request; all inputs in one encoding, outputs as each says.
///
/// # Errors
/// [`EncodeError`] when BYTES that are not UTF-8 are to be written as JSON, or a parameter is NaN or infinite.
pub fn encode_request(request: &InferRequest, encoding: Encoding) -> Result<Body, EncodeError> {
    let not_finite = |value: &Parameter| matches!(value, Parameter::Float(number) if !number.is_finite());
    if let Some((name, _)) = request.parameters.iter().find(|(_, value)| not_finite(value)) {
        return Err(EncodeError::NotFinite { name: name.clone() });
    }
    let inputs: usize = request.inputs.iter().map(|t| t.data.len() + t.name.len() + 128).sum();
    let mut out = Vec::with_capacity(256 + inputs);
    out.push(b'{');
    if let Some(id) = &request.id {
        field(&mut out, "id", id);
        out.push(b',');
    }
    if !request.parameters.is_empty() {
        field(&mut out, "parameters", &request.parameters);
        out.push(b',');
    }
    if !request.outputs.is_empty() {
        out.extend_from_slice(b"\"outputs\":[");
        separated(&mut out, request.outputs.iter(), |out, output| {
            out.push(b'{');
            field(out, "name", &output.name);
            if let Some(binary) = output.binary {
                out.extend_from_slice(b",\"parameters\":{");
                field(out, BINARY_DATA, &binary);
                out.push(b'}');
            }
            out.push(b'}');
            Ok(())
        })?;
        out.extend_from_slice(b"],");
    }
    out.extend_from_slice(b"\"inputs\":[");
    let views: Vec<_> = request.inputs.iter().map(|t| t.view(encoding)).collect();
    finish(out, &views)
}

/// What a response says besides its outputs.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The model that ran.
    pub model_name: &'a str,
    /// The version that ran.
    pub model_version: Option<&'a str>,
    /// The request's `id`.
    pub id: Option<&'a str>,
}

/// Encodes a response. Each output's bytes are copied once, from its view into the body.
///
/// # Errors
/// [`EncodeError::NotUtf8`].
pub fn encode_response(head: ResponseHead<'_>, outputs: &[TensorView<'_>]) -> Result<Body, EncodeError> {
    let mut out = Vec::with_capacity(256 + outputs.iter().map(|t| t.data.len() + 96).sum::<usize>());
    out.push(b'{');
    field(&mut out, "model_name", head.model_name);
    out.push(b',');
    if let Some(version) = head.model_version {
        field(&mut out, "model_version", version);
        out.push(b',');
    }
    if let Some(id) = head.id {
        field(&mut out, "id", id);
        out.push(b',');
    }
    out.extend_from_slice(b"\"outputs\":[");
    finish(out, outputs)
}

/// Writes the last member's items, closes the document, appends raw tensors.
fn finish(mut out: Vec<u8>, tensors: &[TensorView<'_>]) -> Result<Body, EncodeError> {
    separated(&mut out, tensors.iter(), |out, tensor| {
        out.push(b'{');
        field(out, "name", tensor.name);
        out.push(b',');
        field(out, "datatype", tensor.datatype.as_str());
        out.push(b',');
        field(out, "shape", tensor.shape);
        match tensor.encoding {
            Encoding::Binary => {
                out.extend_from_slice(b",\"parameters\":{");
                field(out, BINARY_DATA_SIZE, &tensor.data.len());
                out.push(b'}');
            }
            Encoding::Json => {
                out.extend_from_slice(b",\"data\":");
                elements::write(out, tensor.datatype, tensor.data)
                    .map_err(|source| EncodeError::NotUtf8 { name: tensor.name.to_owned(), source })?;
            }
        }
        out.push(b'}');
        Ok(())
    })?;
    out.extend_from_slice(b"]}");
    let mut header_length = None;
    for tensor in tensors.iter().filter(|t| t.encoding == Encoding::Binary) {
        header_length.get_or_insert(out.len());
        out.extend_from_slice(tensor.data);
    }
    Ok(Body { bytes: out.into(), header_length })
}

fn field<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(out, value).expect("these values serialize, and memory takes them");
}

fn separated<T>(
    out: &mut Vec<u8>,
    items: impl Iterator<Item = T>,
    mut item: impl FnMut(&mut Vec<u8>, T) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    for (index, value) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item(out, value)?;
    }
    Ok(())
}
