//! Bytes to messages and back.
//!
//! A body is either one JSON document, or a JSON header of known length followed by raw tensors (the binary tensor
//! extension). Which of the two is told outside the body, by [`Body::header_length`].

use bytes::Bytes;

pub use super::decode::{DecodeError, decode_request, decode_response};
pub use super::encode::{EncodeError, ResponseHead, TensorView, encode_request, encode_response};

/// Most tensors in a message.
pub const MAX_TENSORS: usize = 256;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 16;
/// Most entries of a `parameters` object.
pub const MAX_PARAMETERS: usize = 64;
/// Longest tensor or parameter name in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest `id` in bytes. Requests that travel as one are told apart by it.
pub const MAX_ID_BYTES: usize = 4096;

/// The tensor parameter that gives the length of its raw bytes.
pub(super) const BINARY_DATA_SIZE: &str = "binary_data_size";
/// The output parameter that asks for raw bytes.
pub(super) const BINARY_DATA: &str = "binary_data";

/// Bounds that a decoder puts on what it is given, besides the fixed `MAX_…` ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest body in bytes.
    pub max_body_bytes: usize,
    /// Most elements of one tensor.
    pub max_elements: usize,
}

impl Default for Limits {
    /// 16 MiB, the default message limit of RabbitMQ 4; 64 Mi elements.
    fn default() -> Self {
        Self { max_body_bytes: 16 << 20, max_elements: 64 << 20 }
    }
}

/// An encoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// JSON, or a JSON header followed by raw tensors.
    pub bytes: Bytes,
    /// Length of the JSON header in bytes where the binary extension is used.
    pub header_length: Option<usize>,
}

impl Body {
    /// The content type that goes with the body.
    pub fn content_type(&self) -> &'static str {
        match self.header_length {
            Some(_) => "application/octet-stream",
            None => "application/json",
        }
    }
}

/// How tensor data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Numbers and strings in the JSON document.
    #[default]
    Json,
    /// Raw little-endian bytes after a JSON header.
    Binary,
}
