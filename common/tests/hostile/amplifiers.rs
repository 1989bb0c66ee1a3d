//! Valid requests made to cost as much memory for each byte of input as possible.

use millrace_common::protocol::codec::MAX_TENSORS;

/// Each with its name.
pub(crate) fn amplifiers() -> Vec<(&'static str, String)> {
    // One-character names, in order: a map fills its nodes only by half when it grows at its end.
    let parameters =
        (b'0'..b'[').map(|name| format!("\"{}\":0", char::from(name))).collect::<Vec<_>>().join(",");
    let scalar = r#"{"name":"","shape":[],"datatype":"FP64","data":1}"#;
    let with_parameters =
        format!(r#"{{"name":"","shape":[],"datatype":"BOOL","data":true,"parameters":{{{parameters}}}}}"#);
    let output = format!(r#"{{"name":"","parameters":{{{parameters}}}}}"#);
    let long = "a".repeat(100_000);
    vec![
        ("digits as FP64", flat("FP64", "1", 200_000)),
        ("empty strings", flat("BYTES", "\"\"", 200_000)),
        ("short strings", flat("BYTES", "\"abcdef\"", 100_000)),
        ("escaped strings", flat("BYTES", r#""\n""#, 100_000)),
        // Refused, for no number is such a text, but not before it is unescaped.
        (
            "a text among numbers",
            inputs(&tensor("FP64", "[200001]", &format!("{},\"{long}{long}\\n\"", join("1", 200_000)), 1)),
        ),
        (
            "a text full of commas",
            inputs(&tensor("FP64", "[400000]", &format!("\"\\n{}\"", ",".repeat(400_000)), 1)),
        ),
        ("one long string", flat("BYTES", &format!("\"{long}\""), 1)),
        ("one long string with an escape", flat("BYTES", &format!("\"{long}\\n\""), 1)),
        ("empty rows", inputs(&tensor("FP64", "[100000,0]", "[]", 100_000))),
        ("scalars", inputs(&join(scalar, MAX_TENSORS))),
        ("tensors with parameters", inputs(&join(&with_parameters, MAX_TENSORS))),
        ("outputs with parameters", outputs(&join(&output, MAX_TENSORS))),
        ("outputs", outputs(&join(r#"{"name":""}"#, MAX_TENSORS))),
        ("request parameters", format!(r#"{{"inputs":[],"parameters":{{{parameters}}}}}"#)),
        ("nothing", inputs("")),
    ]
}

fn join(item: &str, count: usize) -> String {
    vec![item; count].join(",")
}

fn inputs(inputs: &str) -> String {
    format!(r#"{{"inputs":[{inputs}]}}"#)
}

fn outputs(outputs: &str) -> String {
    format!(r#"{{"inputs":[],"outputs":[{outputs}]}}"#)
}

fn flat(datatype: &str, item: &str, count: usize) -> String {
    inputs(&tensor(datatype, &format!("[{count}]"), item, count))
}

fn tensor(datatype: &str, shape: &str, item: &str, count: usize) -> String {
    format!(r#"{{"name":"","shape":{shape},"datatype":"{datatype}","data":[{}]}}"#, join(item, count))
}
