//! Bodies: what is no message, what no datatype holds, what does not fit the model.

use lapin::types::AMQPValue;
use millrace_producer::Datatype;
use millrace_tests::foreign::rows;

use super::{Case, End, MAX_BODY_BYTES};

const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

/// A case that is `invalid_input`; the error must contain `text`.
fn case(name: impl Into<String>, model: &'static str, body: impl Into<Vec<u8>>, text: &'static str) -> Case {
    Case { to: Ok(model), ..Case::new(name, body, End::Answered("invalid_input", text)) }
}

impl Case {
    /// A binary body whose JSON header is said to have this many bytes more than it has.
    fn binary(self, tensors: &[u8], off_by: i64) -> Self {
        let length = i64::try_from(self.body.len()).expect("small") + off_by;
        let body = [&self.body, tensors].concat();
        Self { body, ..self }.header(HEADER_LENGTH, AMQPValue::LongLongInt(length))
    }

    fn too_large(self) -> Self {
        let End::Answered(_, text) = self.end else { return self };
        Self { end: End::Answered("too_large", text), ..self }
    }
}

fn input(name: &str, datatype: &str, shape: &str, rest: &str) -> String {
    format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":{shape},{rest}}}"#)
}

fn json(inputs: &str) -> String {
    format!(r#"{{"inputs":[{inputs}]}}"#)
}

/// Bodies that are no message.
pub(super) fn malformed() -> Vec<Case> {
    let raw = |size: usize| {
        json(&input("x", "FP32", "[1,4]", &format!(r#""parameters":{{"binary_data_size":{size}}}"#)))
    };
    let four = || rows(&[[1.0; 4]]);
    vec![
        case("no JSON", "four", "hello", "malformed JSON"),
        case("nothing", "four", "", "malformed JSON"),
        case("cut JSON", "four", &four()[..30], "malformed JSON"),
        case("an array", "four", "[]", "malformed JSON"),
        case("no inputs", "four", "{}", "inputs"),
        case("deep nesting", "four", "[".repeat(3000), "malformed JSON"),
        case(
            "bare NaN",
            "four",
            json(&input("x", "FP32", "[1,4]", r#""data":[NaN,1,1,1]"#)),
            "malformed JSON",
        ),
        case("unknown datatype", "four", json(&input("x", "FP8", "[1,4]", r#""data":[1,1,1,1]"#)), "FP8"),
        case(
            "too few elements",
            "four",
            json(&input("x", "FP32", "[1,4]", r#""data":[1,1,1]"#)),
            "3 elements",
        ),
        case(
            "negative size",
            "four",
            json(&input("x", "FP32", "[-1,4]", r#""data":[1]"#)),
            "negative dimension",
        ),
        case(
            "size beyond memory",
            "four",
            json(&input("x", "FP32", "[9223372036854775807,9]", r#""data":[1]"#)),
            "too many elements",
        ),
        case(
            "no data",
            "four",
            json(r#"{"name":"x","datatype":"FP32","shape":[1,4]}"#),
            "neither `data` nor",
        ),
        case("header beyond the body", "four", raw(16), "is said to have").binary(&[0; 16], 100),
        case("header too short", "four", raw(16), "malformed JSON").binary(&[0; 16], -5),
        case("header too long", "four", raw(16), "malformed JSON").binary(&[0; 16], 5),
        case("size beyond the body", "four", raw(400), "more than the body holds").binary(&[0; 16], 0),
        case("bytes left over", "four", raw(16), "3 bytes follow").binary(&[0; 19], 0),
        case("size against shape", "four", raw(12), "needs 16 bytes").binary(&[0; 12], 0),
    ]
}

/// Documents with something wrong in them.
pub(super) fn documents() -> Vec<Case> {
    let four = |rest: &str| json(&input("x", "FP32", "[1,4]", rest));
    let good = input("x", "FP32", "[1,4]", r#""data":[1,1,1,1]"#);
    let many = |item: &str, count: usize| vec![item; count].join(",");
    let parameters: Vec<String> = (0..65).map(|n| format!(r#""{n}":0"#)).collect();
    let documents: Vec<(&str, String, &str)> = vec![
        ("neither form of data", four(r#""data":null"#), "neither `data` nor"),
        ("data is a number", four(r#""data":1"#), "must be an array"),
        ("data is an object", four(r#""data":{"a":1}"#), "FP32 elements"),
        ("data holds null", four(r#""data":[null,1,1,1]"#), "FP32 elements"),
        ("data holds an object", four(r#""data":[{},1,1,1]"#), "FP32 elements"),
        ("data holds text", four(r#""data":["a",1,1,1]"#), "a string is not a FP32 value"),
        ("data mixes levels", four(r#""data":[[1],1,1,1]"#), "not nested as shape"),
        ("data nested too deep", four(r#""data":[[[1,1,1,1]]]"#), "nested deeper"),
        ("data nested the wrong way", four(r#""data":[[1,1],[1,1]]"#), "not nested as shape"),
        ("too many elements", four(r#""data":[1,1,1,1,1]"#), "more elements"),
        ("data twice", four(r#""data":[1,1,1,1],"data":[1,1,1,1]"#), "duplicate field"),
        ("both forms of data", four(r#""data":[1,1,1,1],"parameters":{"binary_data_size":16}"#), "both"),
        ("size is text", four(r#""parameters":{"binary_data_size":"16"}"#), "not a count"),
        ("size is negative", four(r#""parameters":{"binary_data_size":-16}"#), "not a count"),
        ("size is broken", four(r#""parameters":{"binary_data_size":16.5}"#), "not a count"),
        ("raw data in JSON", four(r#""parameters":{"binary_data_size":16}"#), "more than the body holds"),
        ("shape is a number", json(&input("x", "FP32", "4", r#""data":[1]"#)), "an array of at most"),
        ("shape holds text", json(&input("x", "FP32", r#"["4"]"#, r#""data":[1]"#)), "a dimension"),
        ("shape holds a fraction", json(&input("x", "FP32", "[4.5]", r#""data":[1]"#)), "a dimension"),
        (
            "17 dimensions",
            json(&input("x", "FP32", &format!("[{}]", many("1", 17)), r#""data":[1]"#)),
            "at most 16",
        ),
        (
            "a size above i64",
            json(&input("x", "FP32", "[9223372036854775808]", r#""data":[1]"#)),
            "a dimension",
        ),
        ("no name", json(r#"{"datatype":"FP32","shape":[1,4],"data":[1,1,1,1]}"#), "missing field `name`"),
        (
            "a long name",
            json(&input(&"n".repeat(257), "FP32", "[1,4]", r#""data":[1,1,1,1]"#)),
            "at most 256",
        ),
        (
            "a path as name",
            json(&input("../../etc/passwd", "FP32", "[1,4]", r#""data":[1,1,1,1]"#)),
            "is missing",
        ),
        ("NUL as name", json(&input("\\u0000", "FP32", "[1,4]", r#""data":[1,1,1,1]"#)), "is missing"),
        ("257 inputs", json(&many("{}", 257)), "missing field"),
        (
            "257 outputs",
            format!(r#"{{"inputs":[],"outputs":[{}]}}"#, many(r#"{"name":""}"#, 257)),
            "at most 256",
        ),
        (
            "65 parameters",
            format!(r#"{{"inputs":[{good}],"parameters":{{{}}}}}"#, parameters.join(",")),
            "at most 64",
        ),
        (
            "nested parameters",
            format!(r#"{{"inputs":[{good}],"parameters":{{"a":{{}}}}}}"#),
            "a string, number",
        ),
        ("parameters are a list", format!(r#"{{"inputs":[{good}],"parameters":[]}}"#), "an object"),
        (
            "a parameter twice",
            format!(r#"{{"inputs":[{good}],"parameters":{{"a":1,"a":2}}}}"#),
            "given twice",
        ),
        (
            "an odd output",
            format!(r#"{{"inputs":[{good}],"outputs":[{{"name":"y","parameters":{{"binary_data":1}}}}]}}"#),
            "not true or false",
        ),
        (
            "an output twice",
            format!(r#"{{"inputs":[{good}],"outputs":[{{"name":"y"}},{{"name":"y"}}]}}"#),
            "asked for twice",
        ),
        ("a path as output", format!(r#"{{"inputs":[{good}],"outputs":[{{"name":"../y"}}]}}"#), "is unknown"),
        ("id is a number", format!(r#"{{"id":1,"inputs":[{good}]}}"#), "a string of at most 4096"),
        ("inputs are an object", r#"{"inputs":{}}"#.to_owned(), "an array of at most"),
        ("inputs are null", r#"{"inputs":null}"#.to_owned(), "an array of at most"),
        ("two documents", format!("{0}{0}", json(&good)), "trailing characters"),
    ];
    let mut cases: Vec<Case> =
        documents.into_iter().map(|(name, body, text)| case(name, "four", body, text)).collect();
    cases.push(case("not UTF-8", "four", *b"{\"id\":\"\xff\",\"inputs\":[]}", "malformed JSON"));
    cases
}

/// Values that their datatype does not have, and datatypes that the model does not take.
pub(super) fn values() -> Vec<Case> {
    let mut cases = Vec::new();
    for (datatype, numbers) in [
        ("UINT8", ["256", "-1"]),
        ("UINT16", ["65536", "-1"]),
        ("UINT32", ["4294967296", "1.5"]),
        ("UINT64", ["18446744073709551616", "-1"]),
        ("INT8", ["128", "-129"]),
        ("INT16", ["32768", "1e3"]),
        ("INT32", ["2147483648", "true"]),
        ("INT64", ["9223372036854775808", r#""1""#]),
        ("FP16", ["65520", "-70000"]),
        ("BF16", ["3.4e38", "1e39"]),
        ("FP32", ["3.5e38", "true"]),
        ("FP64", ["1e400", r#""1""#]),
        ("BOOL", ["1", r#""true""#]),
        ("BYTES", ["1", "true"]),
    ] {
        let body = |number| json(&input("x", datatype, "[1]", &format!(r#""data":[{number}]"#)));
        let cases_of =
            numbers.map(|number| case(format!("{datatype} {number}"), "four", body(number), "tensor `x`"));
        cases.extend(cases_of);
    }
    for datatype in Datatype::ALL.iter().filter(|datatype| **datatype != Datatype::Fp32) {
        let empty = input("x", datatype.as_str(), "[0,4]", r#""data":[]"#);
        cases.push(case(format!("{datatype} for FP32"), "four", json(&empty), "takes FP32"));
    }
    cases
}

/// Messages that do not fit the model, and values that its datatypes do not have.
pub(super) fn misfits() -> Vec<Case> {
    let data = |count: usize| format!(r#""data":[{}]"#, vec!["1"; count].join(","));
    let four = input("x", "FP32", "[1,4]", &data(4));
    let raw = |datatype, shape, size: usize| {
        json(&input("x", datatype, shape, &format!(r#""parameters":{{"binary_data_size":{size}}}"#)))
    };
    vec![
        case("wrong datatype", "four", json(&input("x", "INT32", "[1,4]", &data(4))), "takes FP32"),
        case("missing input", "four", r#"{"inputs":[]}"#, "`x` is missing"),
        case(
            "unknown input",
            "four",
            json(&format!("{four},{}", input("z", "FP32", "[1]", &data(1)))),
            "`z` is unknown",
        ),
        case("input given twice", "four", json(&format!("{four},{four}")), "given twice"),
        case("wrong rank", "four", json(&input("x", "FP32", "[4]", &data(4))), "takes [batch, 4]"),
        case("wrong size", "four", json(&input("x", "FP32", "[1,5]", &data(5))), "takes [batch, 4]"),
        case("no rows", "four", json(&input("x", "FP32", "[0,4]", &data(0))), "1 or more"),
        case("too many rows", "four", rows(&[[1.0; 4]; 9]), "max_batch_size is 8"),
        case(
            "unknown output",
            "four",
            format!(r#"{{"inputs":[{four}],"outputs":[{{"name":"z"}}]}}"#),
            "`z` is unknown",
        ),
        case("BOOL 2", "BOOL", raw("BOOL", "[1,2]", 2), "not 0 or 1").binary(&[1, 2], 0),
        case("BYTES cut short", "BYTES", raw("BYTES", "[1,1]", 5), "length-prefixed")
            .binary(&[9, 0, 0, 0, b'a'], 0),
        case("NUL in BYTES", "BYTES", raw("BYTES", "[1,1]", 5), "NUL").binary(&[1, 0, 0, 0, 0], 0),
        case("no text as JSON", "BYTES", raw("BYTES", "[1,1]", 5), "binary_data")
            .binary(&[1, 0, 0, 0, 0xff], 0),
        case("body above the limit", "four", vec![b' '; MAX_BODY_BYTES + 1], "limit is 4096").too_large(),
        // 2,000 bytes in, about 5,500 out.
        case("result above the limit", "FP32", raw("FP32", "[1,500]", 2000), "limits.max_body_bytes is 4096")
            .binary(&1.234_567e-3_f32.to_le_bytes().repeat(500), 0)
            .too_large(),
    ]
}
