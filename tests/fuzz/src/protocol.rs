//! Bodies of requests and replies.

use bytes::Bytes;
use millrace_common::protocol::codec::{Encoding, Limits, decode_request, decode_response, encode_request};
use millrace_common::protocol::elements;
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::tensor::{Datatype, Tensor, push_bytes_element};

use crate::memory::metered;
use crate::{first, length, split};

const UNLIMITED: Limits = Limits { max_body_bytes: usize::MAX, max_elements: usize::MAX };

/// A JSON body: what is accepted means the same in both encodings.
pub fn json(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    if let Ok(request) = metered(input.len(), || decode_request(&body, None, &Limits::default())) {
        for encoding in [Encoding::Json, Encoding::Binary] {
            assert_eq!(through(&request, encoding).as_ref(), Some(&request), "{encoding:?}");
        }
    }
    let _ = metered(input.len(), || decode_response(&body, None, &Limits::default()));
}

/// A binary body, after two bytes that say how long its header is.
pub fn binary(input: &[u8]) {
    let (header_length, body) = length(input);
    let body = Bytes::copy_from_slice(body);
    let decoded = metered(body.len(), || decode_request(&body, Some(header_length), &Limits::default()));
    if let Ok(request) = decoded {
        assert_eq!(through(&request, Encoding::Binary).as_ref(), Some(&request));
        // Of what is not a number JSON keeps that much, and it has no text that is not UTF-8.
        if let Some(plain) = through(&request, Encoding::Json) {
            assert_eq!(through(&plain, Encoding::Json), Some(plain));
        }
    }
    let _ = metered(body.len(), || decode_response(&body, Some(header_length), &Limits::default()));
}

fn through(request: &InferRequest, encoding: Encoding) -> Option<InferRequest> {
    let body = encode_request(request, encoding).ok()?;
    Some(decode_request(&body.bytes, body.header_length, &UNLIMITED).expect("what is written is read"))
}

/// Elements of a BYTES tensor, and bytes that claim to be some.
pub fn bytes_strings(input: &[u8]) {
    let (count, data) = first(input);
    let shape = vec![i64::from(count)];
    let claimed = Bytes::copy_from_slice(data);
    let tensor = metered(data.len(), || Tensor::new("x", Datatype::Bytes, shape.clone(), claimed.clone()));
    if let Ok(tensor) = tensor {
        let mut again = Vec::new();
        for element in tensor.bytes_elements() {
            push_bytes_element(&mut again, element.expect("it was checked"));
        }
        assert_eq!(again, claimed);
    }
    // The same bytes as elements of any lengths.
    let (mut framed, mut rest, mut elements) = (Vec::new(), data, 0);
    while !rest.is_empty() {
        let (size, more) = first(rest);
        let (element, more) = split(more, usize::from(size % 32));
        push_bytes_element(&mut framed, element);
        (rest, elements) = (more, elements + 1);
    }
    let mut json = Vec::new();
    if elements::write(&mut json, Datatype::Bytes, &framed).is_ok() {
        let text = String::from_utf8(json).expect("JSON is text");
        let read = metered(text.len(), || elements::parse(&text, Datatype::Bytes, &[elements]));
        assert_eq!(read, Ok(framed));
    }
}
