//! Bodies that nobody's encoder wrote: no panic, memory bounded by the input, errors short and to the point.
//!
//! The counterpart, what is encoded is decoded, is in `protocol_properties.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "hostile/amplifiers.rs"]
mod amplifiers;
mod arbitrary;
#[path = "hostile/copies.rs"]
mod copies;
#[path = "hostile/document.rs"]
mod document;
#[path = "hostile/lists.rs"]
mod lists;
#[path = "hostile/mutation.rs"]
mod mutation;

use amplifiers::amplifiers;
use arbitrary::{Elements, request, response};
use bytes::Bytes;
use document::{Document, document};
use millrace_common::protocol::codec::{
    Body, DecodeError, Encoding, Limits, MAX_ID_BYTES, MAX_NAME_BYTES, MAX_PARAMETERS, MAX_RANK, MAX_TENSORS,
    ResponseHead, decode_request, decode_response, encode_request, encode_response,
};
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::tensor::{Datatype, Tensor, element_count};
use millrace_harness::meter::{Counting, peak_of};
use mutation::mutation;
use proptest::collection::vec;
use proptest::prelude::*;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Most bytes alive at once during a decode, for each byte of input.
///
/// They are reached: an FP64 tensor reserves eight bytes for every two of its text (`1,`), and while a string with escapes is
/// unescaped, its buffer doubles and is alive twice beside the tensor's.
const PEAK_PER_BYTE: usize = 4;
/// What a decode may allocate for any input: a list of tensors with hardly any text, the first nodes of a map, an error.
const PEAK_BASE: usize = 256 << 10;
/// The longest text of an error: a name of 256 bytes, a shape of 16 dimensions twice, and words.
const MAX_ERROR_BYTES: usize = 1 << 10;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Decodes a body as a request and as a response, and checks what must hold whatever the body is.
fn withstand(body: &[u8], header_length: Option<usize>) {
    let bytes = Bytes::copy_from_slice(body);
    let limits = Limits::default();
    let request = metered(&bytes, || decode_request(&bytes, header_length, &limits));
    if let Some(request) = request {
        assert!(request.id.as_ref().is_none_or(|id| id.len() <= MAX_ID_BYTES));
        assert!(request.parameters.len() <= MAX_PARAMETERS && request.outputs.len() <= MAX_TENSORS);
        assert_sound(&request.inputs);
        let again = encode_request(&request, Encoding::Binary).unwrap();
        assert_eq!(
            decode_request(
                &again.bytes,
                again.header_length,
                &Limits { max_body_bytes: usize::MAX, ..limits }
            )
            .unwrap(),
            request,
            "what was accepted can be passed on"
        );
    }
    let response = metered(&bytes, || decode_response(&bytes, header_length, &limits));
    if let Some(response) = response {
        assert_sound(&response.outputs);
    }
}

fn metered<T>(input: &Bytes, decode: impl FnOnce() -> Result<T, DecodeError>) -> Option<T> {
    let (result, peak) = peak_of(decode);
    let allowed = PEAK_PER_BYTE * input.len() + PEAK_BASE;
    assert!(peak <= allowed, "{} bytes decoded with {peak} bytes of memory: {}", input.len(), excerpt(input));
    match result {
        Ok(message) => Some(message),
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.len() <= MAX_ERROR_BYTES,
                "{} bytes of error: {}",
                text.len(),
                excerpt(text.as_bytes())
            );
            None
        }
    }
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned()
}

fn assert_sound(tensors: &[Tensor]) {
    assert!(tensors.len() <= MAX_TENSORS);
    for tensor in tensors {
        assert_eq!(tensor.check(), Ok(()));
        assert!(tensor.name.len() <= MAX_NAME_BYTES && tensor.shape.len() <= MAX_RANK);
        assert!(element_count(&tensor.shape).unwrap() <= Limits::default().max_elements);
    }
}

fn request_with(tensor: &str) -> String {
    format!(r#"{{"inputs":[{tensor}]}}"#)
}

fn tensor_with(member: &str) -> String {
    request_with(&format!(r#"{{"name":"x","shape":[1],"datatype":"FP32",{member}}}"#))
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        request(Elements::Utf8).prop_map(|request| encode_request(&request, Encoding::Json).unwrap()),
        request(Elements::Any).prop_map(|request| encode_request(&request, Encoding::Binary).unwrap()),
        response().prop_map(|response| encode_response(response.head(), &response.views()).unwrap()),
    ]
}

proptest! {
    #![proptest_config(config(2048))]

    #[test]
    fn arbitrary_bytes_are_withstood(
        body in vec(any::<u8>(), 0..200),
        header_length in prop::option::of(prop_oneof![0..210usize, any::<usize>()]),
    ) {
        withstand(&body, header_length);
    }

    #[test]
    fn near_misses_are_withstood(Document { body, header_length } in document()) {
        withstand(&body, header_length);
    }

    #[test]
    fn mutations_are_withstood(body in body(), mutations in vec(mutation(), 1..5), skew in -2..=2isize) {
        let mut bytes = body.bytes.to_vec();
        mutations.into_iter().for_each(|mutation| mutation.apply(&mut bytes));
        withstand(&bytes, body.header_length);
        withstand(&bytes, body.header_length.map(|length| length.saturating_add_signed(skew)));
    }
}

/// Bodies that use everything the protocol has.
fn samples() -> [Body; 4] {
    let json =
        br#"{"id":"r\u00e9 1","parameters":{"a":true,"b":-7,"c":1.5e3,"d":"\n","e":18446744073709551615},
        "inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,-2.5],[3e2,"NaN"]]},
        {"name":"s","shape":[2],"datatype":"BYTES","data":["a\u0000","\ud83d\ude00"]},
        {"name":"b","shape":[],"datatype":"BOOL","data":true}],
        "outputs":[{"name":"y","parameters":{"binary_data":true}},{"name":"z"}]}"#;
    let request = decode_request(&Bytes::from_static(json), None, &Limits::default()).unwrap();
    let head = ResponseHead { model_name: "m\"1", model_version: Some("3"), id: request.id.as_deref() };
    let views = |second| {
        [Encoding::Json, second, Encoding::Json]
            .into_iter()
            .zip(&request.inputs)
            .map(|(e, t)| t.view(e))
            .collect()
    };
    let respond = |views: Vec<_>| encode_response(head, &views).unwrap();
    [
        Body { bytes: Bytes::from_static(json), header_length: None },
        encode_request(&request, Encoding::Binary).unwrap(),
        respond(views(Encoding::Json)),
        respond(views(Encoding::Binary)),
    ]
}

#[test]
fn every_single_bit_flip_is_withstood() {
    for Body { bytes, header_length } in samples() {
        let mut bytes = bytes.to_vec();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                withstand(&bytes, header_length);
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn every_single_byte_change_is_withstood() {
    for Body { bytes, header_length } in samples() {
        for at in 0..bytes.len() {
            for &byte in b"\"\\[]{},:0-e \xff" {
                let mut changed = bytes.to_vec();
                changed[at] = byte;
                withstand(&changed, header_length);
            }
            withstand(&[&bytes[..at], &bytes[at + 1..]].concat(), header_length);
            withstand(&bytes[..at], header_length);
            withstand(&bytes, Some(at));
        }
    }
}

#[test]
fn nesting_neither_overflows_the_stack_nor_is_kept() {
    for (open, close, depth) in [
        ("[", "]", 100_000),
        (r#"{"a":"#, "", 100_000),
        (r#"{"a":"#, "}", 10_000),
        (r#"[{"inputs":"#, "}]", 10_000),
        (r#"{"inputs":["#, "", 10_000),
    ] {
        let nest = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for document in everywhere(&nest) {
            withstand(document.as_bytes(), None);
        }
    }
}

#[test]
fn long_text_in_the_wrong_place_is_not_echoed() {
    // Control characters, which serde's own errors would write as six bytes each; escapes; plain text.
    for piece in ["\u{7f}", r"\u0001", r"\n", "a"] {
        for last in ["", r"\n", r"\ud800"] {
            let text = format!("\"{}{last}\"", piece.repeat(50_000));
            for document in everywhere(&text) {
                withstand(document.as_bytes(), None);
            }
        }
    }
}

#[test]
fn long_numbers_are_withstood() {
    let digits = "7".repeat(50_000);
    for number in [
        digits.clone(),
        format!("0.{digits}"),
        format!("1e{digits}"),
        format!("1e-{digits}"),
        format!("-{digits}.{digits}e-{digits}"),
    ] {
        for document in everywhere(&number) {
            withstand(document.as_bytes(), None);
        }
    }
}

/// Documents with the value in every position of the grammar.
fn everywhere(value: &str) -> Vec<String> {
    let mut documents = vec![value.to_owned(), request_with(value)];
    for member in ["id", "parameters", "inputs", "outputs", "model_name", "model_version", "unknown"] {
        documents.push(format!(r#"{{"{member}":{value}}}"#));
        documents.push(format!(r#"{{"inputs":[],"{member}":{value}}}"#));
    }
    for member in ["name", "shape", "datatype", "parameters", "data", "unknown"] {
        documents.push(request_with(&format!(r#"{{"{member}":{value}}}"#)));
        documents.push(format!(r#"{{"model_name":"m","outputs":[{{"{member}":{value}}}]}}"#));
        documents.push(tensor_with(&format!(r#""{member}":{value}"#)));
    }
    for datatype in ["FP64", "BYTES"] {
        for shape in ["[]", "[67108864]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"] {
            for data in [value, &format!("[{value}]"), &format!("[[{value}]]")] {
                let tensor =
                    format!(r#"{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}"#);
                documents.push(request_with(&tensor));
            }
        }
    }
    for name in ["a", "binary_data", "binary_data_size"] {
        documents.push(format!(r#"{{"parameters":{{"{name}":{value}}},"inputs":[]}}"#));
        documents.push(tensor_with(&format!(r#""parameters":{{"{name}":{value}}}"#)));
        documents
            .push(format!(r#"{{"outputs":[{{"name":"y","parameters":{{"{name}":{value}}}}}],"inputs":[]}}"#));
    }
    // Where the value is a string, also as a name of a member.
    documents.push(format!(r#"{{{value}:1,"inputs":[]}}"#));
    documents.push(format!(r#"{{"parameters":{{{value}:1}},"inputs":[]}}"#));
    documents.push(tensor_with(&format!(r#"{value}:1"#)));
    documents
}

#[test]
fn a_declared_size_reserves_nothing() {
    for shape in [
        "[67108864]",
        "[8192,8192]",
        "[1,67108864]",
        "[67108864,1,1]",
        "[67108864,0]",
        "[0,9223372036854775807]",
    ] {
        for datatype in ["BOOL", "FP64", "BYTES"] {
            for rest in [
                r#""data":[]"#,
                r#""data":[1]"#,
                r#""data":[[1]]"#,
                r#""parameters":{"binary_data_size":536870912}"#,
            ] {
                let tensor = format!(r#"{{"name":"x","shape":{shape},"datatype":"{datatype}",{rest}}}"#);
                withstand(request_with(&tensor).as_bytes(), None);
                let header = request_with(&vec![tensor; MAX_TENSORS].join(","));
                withstand(header.as_bytes(), Some(header.len()));
            }
        }
    }
}

#[test]
fn the_dearest_requests_stay_within_the_bound() {
    for (what, body) in amplifiers() {
        let decoded = decode_request(&Bytes::copy_from_slice(body.as_bytes()), None, &Limits::default());
        assert!(decoded.is_ok() || what.starts_with("a text"), "{what}: {decoded:?}");
        withstand(body.as_bytes(), None);
    }
}

#[test]
fn raw_tensors_are_not_copied() {
    let tensor = Tensor::new("x", Datatype::Fp32, vec![1 << 18], vec![0; 1 << 20].into());
    let request = InferRequest { inputs: vec![tensor.unwrap()], ..Default::default() };
    let body = encode_request(&request, Encoding::Binary).unwrap();
    let (decoded, peak) = peak_of(|| decode_request(&body.bytes, body.header_length, &Limits::default()));
    assert_eq!(decoded.unwrap(), request);
    assert!(peak < 4096, "{peak}");
}

#[test]
fn the_meter_sees_what_is_allocated_and_freed() {
    let (_, peak) = peak_of(|| {
        drop(vec![0u8; 1 << 20]);
        vec![0u8; 1 << 19]
    });
    assert_eq!(peak, 1 << 20);
    let (_, peak) = peak_of(|| {
        let mut grown = Vec::<u8>::with_capacity(1 << 10);
        grown.reserve_exact(1 << 12);
        grown
    });
    assert_eq!(peak, (1 << 10) + (1 << 12), "old and new at once");
    assert_eq!(peak_of(|| ()).1, 0);
}
