//! What the codec costs: binary tensors are not copied on the way in and once on the way out, and nothing is allocated for
//! each element.

use bytes::Bytes;
use millrace_common::protocol::codec::{
    Body, Encoding, Limits, ResponseHead, decode_request, encode_request, encode_response,
};
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::tensor::{Datatype, Tensor};
use millrace_harness::meter::{allocations_of, peak_of};

/// A buffer that grows to its size asks as often as it doubles.
const DOUBLINGS: usize = 24;

fn tensor(elements: usize) -> Tensor {
    let data: Vec<u8> = (0..elements).flat_map(|n| (n as f32 / 8.0).to_le_bytes()).collect();
    Tensor::new("x", Datatype::Fp32, vec![1, elements as i64], data.into()).unwrap()
}

fn request(elements: usize, encoding: Encoding) -> Body {
    let request = InferRequest { inputs: vec![tensor(elements)], ..InferRequest::default() };
    encode_request(&request, encoding).unwrap()
}

/// Allocations while it is decoded.
fn decoded(body: &Body) -> (InferRequest, usize) {
    let decode = || decode_request(&body.bytes, body.header_length, &Limits::default()).unwrap();
    allocations_of(decode)
}

#[test]
fn a_binary_tensor_stays_where_it_came() {
    let body = request(100_000, Encoding::Binary);
    let ((request, _), peak) = peak_of(|| decoded(&body));
    let lies = |data: &Bytes| data.as_ptr_range().end == body.bytes.as_ptr_range().end;
    assert!(lies(&request.inputs[0].data), "copied");
    assert!(peak < 4096, "{peak} bytes for a header");
}

#[test]
fn no_element_is_allocated_for() {
    for (encoding, extra) in [(Encoding::Binary, 0), (Encoding::Json, DOUBLINGS)] {
        let (_, few) = decoded(&request(16, encoding));
        let (_, many) = decoded(&request(100_000, encoding));
        assert!(many <= few + extra, "{encoding:?}: {few} allocations for 16 elements, {many} for 100,000");
    }
}

#[test]
fn an_answer_is_written_once() {
    let head = ResponseHead { model_name: "m", model_version: Some("1"), id: None };
    let written = |elements, encoding| {
        let tensor = tensor(elements);
        let ((body, allocations), peak) =
            peak_of(|| allocations_of(|| encode_response(head, &[tensor.view(encoding)]).unwrap()));
        (body.bytes.len(), allocations, peak)
    };
    let (length, many, peak) = written(100_000, Encoding::Binary);
    assert!(peak <= length + 4096, "{peak} bytes to write {length}");
    let (_, few, _) = written(16, Encoding::Binary);
    assert!(many <= few + 1, "{few} allocations for 16 elements, {many} for 100,000");
    let (_, many, _) = written(100_000, Encoding::Json);
    let (_, few, _) = written(16, Encoding::Json);
    assert!(many <= few + DOUBLINGS, "{few} allocations for 16 elements in JSON, {many} for 100,000");
}
