//! What is encoded is decoded: every datatype, both encodings, any shape.
//!
//! The counterpart, bodies that nobody's encoder wrote, is in `protocol_hostile.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod arbitrary;

use arbitrary::{Elements, name, request, response, shape_and_bits, tensor, tensor_of};
use bytes::Bytes;
use half::{bf16, f16};
use millrace_common::protocol::codec::{
    Body, DecodeError, EncodeError, Encoding, Limits, MAX_TENSORS, decode_request, decode_response,
    encode_request, encode_response,
};
use millrace_common::protocol::elements;
use millrace_common::protocol::request::{InferRequest, Parameter};
use millrace_common::protocol::tensor::{Datatype, Tensor, push_bytes_element};
use proptest::prelude::*;
use serde_json::Value;

const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::Binary];

fn config() -> ProptestConfig {
    ProptestConfig { cases: 640, failure_persistence: None, ..ProptestConfig::default() }
}

fn decode(body: &Body) -> Result<InferRequest, DecodeError> {
    decode_request(&body.bytes, body.header_length, &Limits::default())
}

/// The tensor with each NaN replaced by one of them: JSON keeps that it is NaN, not which.
fn with_one_nan(tensor: &Tensor) -> Tensor {
    let mut data = tensor.data.to_vec();
    macro_rules! replace {
        ($type:ty) => {
            for chunk in data.as_chunks_mut().0 {
                if <$type>::from_le_bytes(*chunk).is_nan() {
                    *chunk = <$type>::NAN.to_le_bytes();
                }
            }
        };
    }
    match tensor.datatype {
        Datatype::Fp16 => replace!(f16),
        Datatype::Bf16 => replace!(bf16),
        Datatype::Fp32 => replace!(f32),
        Datatype::Fp64 => replace!(f64),
        _ => {}
    }
    Tensor { data: data.into(), ..tensor.clone() }
}

/// Equal as far as the encoding promises: to the bit, but for NaN in JSON.
fn same(sent: &Tensor, received: &Tensor, encoding: Encoding) -> bool {
    match encoding {
        Encoding::Binary => sent == received,
        Encoding::Json => with_one_nan(sent) == with_one_nan(received),
    }
}

/// `data` as JSON, nested as the shape says.
fn nested(flat: &mut impl Iterator<Item = Value>, shape: &[i64]) -> Value {
    match shape.split_first() {
        None => flat.next().unwrap(),
        Some((&dimension, inner)) => (0..dimension).map(|_| nested(flat, inner)).collect(),
    }
}

fn as_json(request: &InferRequest) -> Value {
    serde_json::from_slice(&encode_request(request, Encoding::Json).unwrap().bytes).unwrap()
}

fn json_body(document: &Value, is_pretty: bool) -> Body {
    let text = if is_pretty { serde_json::to_vec_pretty(document) } else { serde_json::to_vec(document) };
    Body { bytes: text.unwrap().into(), header_length: None }
}

fn round_trip(request: &InferRequest, encoding: Encoding) -> Result<(), TestCaseError> {
    let body = encode_request(request, encoding).unwrap();
    let has_header = encoding == Encoding::Binary && !request.inputs.is_empty();
    prop_assert_eq!(body.header_length.is_some(), has_header);
    prop_assert_eq!(body.content_type() == "application/octet-stream", has_header);

    let decoded = decode(&body).unwrap();
    prop_assert_eq!(&decoded.id, &request.id);
    prop_assert_eq!(&decoded.outputs, &request.outputs);
    // As text, since -0.0 == 0.0.
    prop_assert_eq!(format!("{:?}", decoded.parameters), format!("{:?}", request.parameters));
    prop_assert_eq!(decoded.inputs.len(), request.inputs.len());
    for (sent, received) in request.inputs.iter().zip(&decoded.inputs) {
        prop_assert!(same(sent, received, encoding), "{:?}\n{:?}", sent, received);
        prop_assert!(received.check().is_ok());
    }
    prop_assert_eq!(encode_request(&decoded, encoding).unwrap(), body, "what was decoded encodes alike");
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn requests_survive_json(request in request(Elements::Utf8)) {
        round_trip(&request, Encoding::Json)?;
    }

    #[test]
    fn requests_survive_binary(request in request(Elements::Any)) {
        round_trip(&request, Encoding::Binary)?;
    }

    #[test]
    fn every_datatype_survives_every_shape(name in name(), (shape, bits) in shape_and_bits()) {
        for encoding in ENCODINGS {
            for &datatype in Datatype::ALL {
                let elements = Elements::of(encoding);
                let input = tensor_of(name.clone(), datatype, shape.clone(), &bits, elements);
                round_trip(&InferRequest { inputs: vec![input], ..InferRequest::default() }, encoding)?;
            }
        }
    }

    #[test]
    fn responses_survive_outputs_of_either_encoding(response in response()) {
        let body = encode_response(response.head(), &response.views()).unwrap();
        let has_binary = response.outputs.iter().any(|(_, encoding)| *encoding == Encoding::Binary);
        prop_assert_eq!(body.header_length.is_some(), has_binary);

        let decoded = decode_response(&body.bytes, body.header_length, &Limits::default()).unwrap();
        prop_assert_eq!(&decoded.model_name, &response.model_name);
        prop_assert_eq!(&decoded.model_version, &response.model_version);
        prop_assert_eq!(&decoded.id, &response.id);
        prop_assert_eq!(decoded.outputs.len(), response.outputs.len());
        for ((sent, encoding), received) in response.outputs.iter().zip(&decoded.outputs) {
            prop_assert!(same(sent, received, *encoding), "{:?}\n{:?}", sent, received);
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_refused_as_json_only(
        name in name(),
        elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..6),
    ) {
        let mut data = Vec::new();
        elements.iter().for_each(|element| push_bytes_element(&mut data, element));
        let shape = vec![elements.len() as i64];
        let input = Tensor::new(name.clone(), Datatype::Bytes, shape, data.into()).unwrap();
        let request = InferRequest { inputs: vec![input], ..InferRequest::default() };

        round_trip(&request, Encoding::Binary)?;
        match elements.iter().position(|element| std::str::from_utf8(element).is_err()) {
            None => round_trip(&request, Encoding::Json)?,
            Some(index) => {
                let source = elements::NotUtf8 { index };
                let refused = Err(EncodeError::NotUtf8 { name, source });
                prop_assert_eq!(encode_request(&request, Encoding::Json), refused);
            }
        }
    }

    #[test]
    fn nested_data_means_what_flat_data_means(input in tensor(Elements::Utf8)) {
        let request = InferRequest { inputs: vec![input], ..InferRequest::default() };
        let mut document = as_json(&request);
        let shape = &request.inputs[0].shape;
        let data = &mut document["inputs"][0]["data"];
        let flat = data.as_array().unwrap().clone();
        *data = nested(&mut flat.into_iter(), shape);

        let decoded = decode(&json_body(&document, false)).unwrap();
        prop_assert!(same(&request.inputs[0], &decoded.inputs[0], Encoding::Json));
    }

    #[test]
    fn white_space_and_the_order_of_members_mean_nothing(request in request(Elements::Utf8)) {
        // A `Value` sorts members by name, which puts `data` first.
        let sorted = as_json(&request);
        let decoded = decode(&encode_request(&request, Encoding::Json).unwrap()).unwrap();
        for is_pretty in [false, true] {
            let again = decode(&json_body(&sorted, is_pretty)).unwrap();
            prop_assert_eq!(&again, &decoded);
        }
    }

    #[test]
    fn a_body_cut_short_or_continued_is_refused(
        request in request(Elements::Utf8),
        cut in any::<prop::sample::Index>(),
    ) {
        for encoding in ENCODINGS {
            let body = encode_request(&request, encoding).unwrap();
            let cut = cut.index(body.bytes.len());
            let short = Body { bytes: body.bytes.slice(..cut), ..body.clone() };
            prop_assert!(decode(&short).is_err(), "{} of {} bytes", cut, body.bytes.len());
            let long = Body { bytes: [&body.bytes[..], &[0]].concat().into(), ..body.clone() };
            prop_assert!(decode(&long).is_err());
        }
    }

    #[test]
    fn limits_are_inclusive(input in tensor(Elements::Utf8)) {
        // Empty axes do not excuse the others.
        let elements = input.shape.iter().map(|&size| size.max(1)).product::<i64>() as usize;
        let request = InferRequest { inputs: vec![input], ..InferRequest::default() };
        for encoding in ENCODINGS {
            let body = encode_request(&request, encoding).unwrap();
            let decode = |limits| decode_request(&body.bytes, body.header_length, &limits);
            let exact = Limits { max_body_bytes: body.bytes.len(), max_elements: elements };
            prop_assert!(decode(exact).is_ok());
            let is_too_large = |limits| matches!(decode(limits), Err(DecodeError::TooLarge { .. }));
            let less = Limits { max_body_bytes: exact.max_body_bytes - 1, ..exact };
            prop_assert!(is_too_large(less));
            let fewer = Limits { max_elements: elements - 1, ..exact };
            prop_assert!(is_too_large(fewer));
        }
    }
}

#[test]
fn every_half_precision_number_survives_json() {
    for datatype in [Datatype::Fp16, Datatype::Bf16] {
        let data: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        assert_survives_json(datatype, data, 1 << 16);
    }
}

#[test]
fn single_precision_numbers_survive_json() {
    // A stride through all patterns, then the neighbourhood of the one whose shortest text FP64 readers misread.
    let stride = (0..=u32::MAX).step_by(42_767);
    let data: Vec<u8> = stride.chain(0x15ae_43f0..0x15ae_4410).flat_map(u32::to_le_bytes).collect();
    let count = data.len() / 4;
    assert_survives_json(Datatype::Fp32, data, count);
}

fn assert_survives_json(datatype: Datatype, data: Vec<u8>, count: usize) {
    let sent = Tensor::new("x", datatype, vec![count as i64], Bytes::from(data)).unwrap();
    let mut text = Vec::new();
    elements::write(&mut text, datatype, &sent.data).unwrap();
    let read = elements::parse(std::str::from_utf8(&text).unwrap(), datatype, &sent.shape).unwrap();
    let received = Tensor { data: read.into(), ..sent.clone() };
    let size = datatype.element_size().unwrap();
    let (sent, received) = (with_one_nan(&sent), with_one_nan(&received));
    let differs =
        sent.data.chunks(size).zip(received.data.chunks(size)).find(|(sent, received)| sent != received);
    assert_eq!(differs, None, "{datatype}");
}

#[test]
fn parameters_without_a_spelling_in_json_are_refused() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let parameters = [("t".to_owned(), Parameter::Float(number))].into();
        let request = InferRequest { parameters, ..InferRequest::default() };
        for encoding in ENCODINGS {
            assert_eq!(
                encode_request(&request, encoding),
                Err(EncodeError::NotFinite { name: "t".into() }),
                "else the body would say null, which no decoder takes"
            );
        }
    }
}

#[test]
fn as_many_tensors_as_allowed_survive() {
    let input =
        |index: usize| Tensor::new(format!("x{index}"), Datatype::Uint8, vec![], vec![7].into()).unwrap();
    for encoding in ENCODINGS {
        let mut request =
            InferRequest { inputs: (0..MAX_TENSORS).map(input).collect(), ..InferRequest::default() };
        assert_eq!(decode(&encode_request(&request, encoding).unwrap()).unwrap(), request);
        request.inputs.push(input(MAX_TENSORS));
        assert!(decode(&encode_request(&request, encoding).unwrap()).is_err());
    }
}
