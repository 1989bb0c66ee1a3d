//! Bodies to requests, off the asynchronous runtime where they are large.

use bytes::Bytes;
use millrace_common::protocol::codec::{DecodeError, Limits, decode_request};
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::status::Code;

/// JSON up to this many bytes is decoded in place: 32 KiB take about 200 µs, below the 500 µs a task may hold the runtime.
const INLINE_JSON_BYTES: usize = 32 << 10;
/// Binary bodies are not parsed but sliced; only BOOL and BYTES tensors are looked through.
const INLINE_BINARY_BYTES: usize = 1 << 20;

/// Decodes a body.
///
/// # Errors
/// [`DecodeError`], to be answered with [`code`].
pub async fn decode(
    body: Bytes,
    header_length: Option<usize>,
    limits: Limits,
) -> Result<InferRequest, DecodeError> {
    let inline = match header_length {
        None => INLINE_JSON_BYTES,
        Some(_) => INLINE_BINARY_BYTES,
    };
    if body.len() <= inline {
        return decode_request(&body, header_length, &limits);
    }
    tokio::task::spawn_blocking(move || decode_request(&body, header_length, &limits))
        .await
        .expect("decoding never panics and is never cancelled")
}

/// The code that a caller gets for a body that does not decode.
pub fn code(error: &DecodeError) -> Code {
    match error {
        DecodeError::TooLarge { .. } => Code::TooLarge,
        _ => Code::InvalidInput,
    }
}
