//! What each class of bad body is answered with. The texts go to callers: they name the tensor and the bound.

use bytes::Bytes;
use millrace_common::protocol::codec::{Limits, decode_request, decode_response};

/// Small limits, so that the table's bodies can pass them.
const LIMITS: Limits = Limits { max_body_bytes: 200_000, max_elements: 1_000 };

fn request_error(body: &str, header_length: Option<usize>) -> String {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    match decode_request(&bytes, header_length, &LIMITS) {
        Ok(request) => panic!("{body} was taken for {request:?}"),
        Err(error) => error.to_string(),
    }
}

/// The error of a request with one input of these members.
fn tensor_error(members: &str) -> String {
    request_error(&format!(r#"{{"inputs":[{{"name":"image",{members}}}]}}"#), None)
}

#[test]
fn a_tensor_in_contradiction_with_itself_is_named() {
    for (members, expected) in [
        (r#""shape":[1],"datatype":"FP128","data":[1]"#, "tensor `image`: unknown datatype `FP128`"),
        (
            r#""shape":[-1],"datatype":"FP32","data":[1]"#,
            "tensor `image`: shape [-1] has a negative dimension or too many elements",
        ),
        (
            r#""shape":[4294967296,4294967296],"datatype":"FP32","data":[1]"#,
            "tensor `image`: shape [4294967296, 4294967296] has a negative dimension or too many elements",
        ),
        (
            r#""shape":[0,4294967296,4294967296],"datatype":"FP32","data":[]"#,
            "tensor `image`: shape [0, 4294967296, 4294967296] has a negative dimension or too many elements",
        ),
        (
            r#""shape":[1001],"datatype":"FP32","data":[]"#,
            "tensor `image`: the number of elements is 1001, the limit is 1000",
        ),
        (r#""shape":[1],"datatype":"FP32""#, "tensor `image`: has neither `data` nor `binary_data_size`"),
        (
            r#""shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}"#,
            "tensor `image`: has both `data` and `binary_data_size`",
        ),
        (
            r#""shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}"#,
            "tensor `image`: `binary_data_size` is more than the body holds",
        ),
        (
            r#""shape":[1],"datatype":"FP32","parameters":{"binary_data_size":-4}"#,
            "tensor `image`: `binary_data_size` is not a count of bytes",
        ),
        (
            r#""shape":[1],"datatype":"FP32","parameters":{"binary_data_size":"4"}"#,
            "tensor `image`: `binary_data_size` is not a count of bytes",
        ),
    ] {
        assert_eq!(tensor_error(members), expected, "{members}");
    }
}

#[test]
fn data_that_does_not_fit_is_told_with_its_tensor() {
    for (datatype, shape, data, expected) in [
        ("FP32", "[2]", "[1]", "1 elements given, shape [2] has 2"),
        ("FP32", "[2]", "[1,2,3]", "more elements than the 2 of shape [2]"),
        ("FP32", "[1]", "7", "`data` must be an array"),
        ("FP32", "[1]", "[[1]]", "`data` is nested deeper than the shape"),
        ("FP32", "[2,2]", "[[1,2],3,4]", "`data` mixes numbers and arrays at one level"),
        ("FP32", "[2,2]", "[[1,2,3],[4]]", "`data` is not nested as shape [2, 2] (element 0)"),
        ("FP32", "[1]", "[1e39]", "is not a FP32 value"),
        ("FP32", "[1]", "[\"nan\"]", "a string is not a FP32 value"),
        ("FP32", "[1]", "[null]", "invalid type: null, expected FP32 elements"),
        ("FP32", "[1]", "[{}]", "invalid type: map, expected FP32 elements"),
        ("FP16", "[1]", "[65520]", "65520 is not a FP16 value"),
        ("FP64", "[1]", "[1e309]", "number out of range"),
        ("UINT8", "[1]", "[256]", "256 is not a UINT8 value"),
        ("UINT64", "[1]", "[-1]", "-1 is not a UINT64 value"),
        ("INT8", "[1]", "[1.5]", "1.5 is not a INT8 value"),
        ("INT8", "[1]", "[true]", "true is not a INT8 value"),
        ("BOOL", "[1]", "[1]", "1 is not a BOOL value"),
        ("BYTES", "[1]", "[1]", "1 is not a BYTES value"),
    ] {
        let error = tensor_error(&format!(r#""shape":{shape},"datatype":"{datatype}","data":{data}"#));
        assert!(error.starts_with("tensor `image`: ") && error.contains(expected), "{data}: {error}");
    }
}

/// Checks one body's error and that it is told as malformed JSON.
fn assert_malformed(body: &str, expected: &str) {
    let error = request_error(body, None);
    assert!(error.starts_with("malformed JSON: ") && error.contains(expected), "{body}: {error}");
}

#[test]
fn documents_of_another_structure_are_refused() {
    for (body, expected) in [
        ("", "EOF while parsing a value"),
        ("{", "EOF while parsing an object"),
        ("nothing", "expected ident"),
        ("[]", "invalid type: sequence, expected an object"),
        ("\"text\"", "invalid type: a string, expected an object"),
        (r#"{"inputs":[]} x"#, "trailing characters"),
        ("{}", "missing field `inputs`"),
        (r#"{"inputs":null}"#, "invalid type: null, expected an array of at most 256 items"),
        (r#"{"inputs":[],"inputs":[]}"#, "duplicate field `inputs`"),
        (r#"{"inputs":[],"id":"\ud800"}"#, "unexpected end of hex escape"),
        (r#"{"inputs":[],"id":7}"#, "invalid type: integer `7`, expected a string of at most 4096 bytes"),
        (
            r#"{"inputs":[],"parameters":[]}"#,
            "invalid type: sequence, expected an object of at most 64 scalars",
        ),
        (r#"{"inputs":[],"parameters":{"p":[]}}"#, "sequence, expected a string, number or boolean"),
        (r#"{"inputs":[],"parameters":{"p":null}}"#, "null, expected a string, number or boolean"),
        (r#"{"inputs":[],"parameters":{"p":1,"p":1}}"#, "a parameter is given twice"),
    ] {
        assert_malformed(body, expected);
    }
    let odd = r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}"#;
    assert_eq!(request_error(odd, None), "tensor `y`: `binary_data` is not true or false");
}

#[test]
fn null_stands_for_an_absent_member_that_may_be_absent() {
    let absent = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":[true]}]}"#;
    let null = r#"{"id":null,"parameters":null,"outputs":null,
        "inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":[true],"parameters":null}]}"#;
    let decode = |text| decode_request(&Bytes::from_static(text), None, &LIMITS);
    let (absent, null) = (decode(absent.as_bytes()), decode(null.as_bytes()));
    assert!(absent.is_ok() && null.is_ok(), "{null:?}");
    assert_eq!(null.ok(), absent.ok());
}

#[test]
fn tensors_of_another_structure_are_refused() {
    for (tensor, expected) in [
        (r#"["x",[1],"BOOL",{},[true]]"#, "invalid type: sequence, expected an object"),
        (r#""x""#, "invalid type: a string, expected an object"),
        (r#"{"name":"x"}"#, "missing field `shape`"),
        (r#"{"shape":[]}"#, "missing field `name`"),
        (r#"{"name":"x","shape":[]}"#, "missing field `datatype`"),
        (r#"{"name":7}"#, "invalid type: integer `7`, expected a string of at most 256 bytes"),
        (r#"{"shape":"1"}"#, "invalid type: a string, expected an array of at most 16 items"),
        (r#"{"shape":["1"]}"#, "invalid type: a string, expected a dimension"),
        (r#"{"shape":[1.0]}"#, "invalid type: floating point `1.0`, expected a dimension"),
        (r#"{"shape":[9223372036854775808]}"#, "`9223372036854775808`, expected a dimension"),
        (r#"{"data":[],"data":[]}"#, "duplicate field `data`"),
        (r#"{"parameters":{"binary_data_size":1,"binary_data_size":2}}"#, "a parameter is given twice"),
    ] {
        assert_malformed(&format!(r#"{{"inputs":[{tensor}]}}"#), expected);
    }
}

#[test]
fn too_many_or_too_long_is_refused_with_the_bound() {
    let tensor = r#"{"name":"x","shape":[1],"datatype":"BOOL","data":[true]}"#;
    let many = |item: &str, count: usize| vec![item; count].join(",");
    let long = |length| "n".repeat(length);
    let parameters = (0..65).map(|i| format!("\"p{i}\":0")).collect::<Vec<_>>().join(",");
    let of_256 = "invalid length 257, expected a string of at most 256 bytes";
    let of_64 = "invalid length 65, expected an object of at most 64 scalars";
    let items = "invalid length 257, expected an array of at most 256 items";
    for (body, expected) in [
        (
            format!(r#"{{"inputs":[{{"shape":[{}]}}]}}"#, many("1", 17)),
            "invalid length 17, expected an array of at most 16 items",
        ),
        (
            format!(r#"{{"inputs":[{{"datatype":"{}"}}]}}"#, long(33)),
            "invalid length 33, expected a string of at most 32 bytes",
        ),
        (format!(r#"{{"inputs":[{{"name":"{}"}}]}}"#, long(257)), of_256),
        (format!(r#"{{"inputs":[{{"name":"\n{}"}}]}}"#, long(256)), of_256),
        (
            format!(r#"{{"inputs":[],"id":"{}"}}"#, long(4097)),
            "invalid length 4097, expected a string of at most 4096 bytes",
        ),
        (format!(r#"{{"inputs":[],"parameters":{{"{}":0}}}}"#, long(257)), of_256),
        (format!(r#"{{"inputs":[{}]}}"#, many(tensor, 257)), items),
        (format!(r#"{{"inputs":[],"outputs":[{}]}}"#, many(r#"{"name":"y"}"#, 257)), items),
        (format!(r#"{{"inputs":[],"parameters":{{{parameters}}}}}"#), of_64),
        (format!(r#"{{"inputs":[{{"parameters":{{{parameters}}}}}]}}"#), of_64),
        (format!(r#"{{"inputs":[],"outputs":[{{"parameters":{{{parameters}}}}}]}}"#), of_64),
    ] {
        assert_malformed(&body, expected);
    }
}

#[test]
fn the_header_and_the_raw_tensors_must_add_up() {
    let of = |datatype: &str, shape: &str, size: usize| {
        format!(
            r#"{{"inputs":[{{"name":"image","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    for (header, raw, expected) in [
        (of("FP32", "[2]", 4), "1234", "tensor `image`: shape [2] of FP32 needs 8 bytes, but 4 are given"),
        (of("FP32", "[1]", 5), "1234", "tensor `image`: `binary_data_size` is more than the body holds"),
        (of("FP32", "[1]", 4), "1234567", "3 bytes follow the last tensor"),
        (of("BOOL", "[2]", 2), "\u{1}\u{2}", "tensor `image`: BOOL element 1 is 2, not 0 or 1"),
        (
            of("BYTES", "[2]", 5),
            "\u{1}\0\0\0x",
            "tensor `image`: BYTES data does not hold exactly 2 length-prefixed elements",
        ),
        (
            of("BYTES", "[1]", 5),
            "\u{2}\0\0\0x",
            "tensor `image`: BYTES data does not hold exactly 1 length-prefixed elements",
        ),
        (r#"{"inputs":[]}"#.into(), "x", "1 bytes follow the last tensor"),
    ] {
        assert_eq!(request_error(&format!("{header}{raw}"), Some(header.len())), expected);
    }
    let empty = r#"{"inputs":[]}"#;
    assert_eq!(request_error(empty, Some(14)), "the JSON header is said to have 14 bytes, the body has 13");
    assert_eq!(
        request_error(empty, Some(usize::MAX)),
        format!("the JSON header is said to have {} bytes, the body has 13", usize::MAX)
    );
    assert!(request_error(empty, Some(12)).starts_with("malformed JSON: EOF"));
    assert!(request_error(empty, Some(0)).starts_with("malformed JSON: EOF"));
}

#[test]
fn bodies_above_the_limit_are_refused_unread() {
    let body = " ".repeat(LIMITS.max_body_bytes + 1);
    let expected = "the body's size in bytes is 200001, the limit is 200000";
    assert_eq!(request_error(&body, None), expected);
    assert_eq!(request_error(&body, Some(2)), expected);
}

#[test]
fn responses_are_read_as_strictly() {
    let error = |body: &str| {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        decode_response(&bytes, None, &LIMITS).unwrap_err().to_string()
    };
    for (body, expected) in [
        (r#"{"outputs":[]}"#, "missing field `model_name`"),
        (r#"{"model_name":"m"}"#, "missing field `outputs`"),
        (r#"["m","1","id",[]]"#, "invalid type: sequence, expected an object"),
        (r#"{"model_name":7,"outputs":[]}"#, "expected a string of at most 256 bytes"),
        (
            r#"{"model_name":"m","outputs":[{"name":"y","shape":[2],"datatype":"INT8","data":[1]}]}"#,
            "tensor `y`: 1 elements given, shape [2] has 2",
        ),
    ] {
        assert!(error(body).contains(expected), "{body}: {}", error(body));
    }
}
