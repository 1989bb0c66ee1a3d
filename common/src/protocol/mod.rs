//! The wire contract: Open Inference Protocol v2 as JSON and with the binary tensor extension.
//!
//! Pure code: no I/O, no AMQP, no HTTP, no ONNX. Every byte it reads is taken for hostile: sizes are checked with
//! checked arithmetic before anything is allocated, and a decode allocates at most a small multiple of its input.
//!
//! - [`tensor`]: datatypes and tensors as little-endian bytes
//! - [`request`], [`response`]: the messages
//! - [`codec`]: bytes to messages and back, with [`codec::Limits`]
//! - [`elements`]: JSON numbers and strings straight into typed little-endian buffers
//! - [`status`]: the stable codes a reply carries, and their HTTP mapping
//!
//! # NaN and infinity
//! JSON has no literals for them. They are written as the strings `"NaN"`, `"Infinity"` and `"-Infinity"` (the mapping
//! of proto3 JSON) and accepted as such in floating-point tensors, both ways. A number that the datatype cannot hold
//! (`1e40` for FP32, `70000` for FP16, `300` for UINT8) is refused, never rounded to infinity or wrapped.

pub mod codec;
mod decode;
mod document;
pub mod elements;
mod encode;
pub mod request;
pub mod response;
pub mod status;
pub mod tensor;
