//! Malformed, oversized and mis-shaped input: each gets a typed reply at once, and its neighbours get their results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use millrace_harness::models;
use millrace_producer::{Client, Code, Datatype, Error, Request, RequestError, Tensor};
use millrace_tests::foreign::{Foreign, rows, with_header};
use millrace_tests::stack::{ONE_INSTANCE, Stack};

const PATIENCE: Duration = Duration::from_secs(20);
const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

fn stack() -> Stack {
    let mut stack = Stack::new()
        .config("four", &format!("max_batch_size = 8\n{ONE_INSTANCE}"))
        .model("four", &models::scale(1.0));
    for datatype in ["BOOL", "BYTES", "FP32"] {
        stack = stack
            .config(datatype, ONE_INSTANCE)
            .model(datatype, &models::identity(datatype).expect("a datatype"));
    }
    stack
}

/// One malformed message: where it goes, what it says, and what the answer must be.
struct Case {
    name: &'static str,
    model: &'static str,
    body: Vec<u8>,
    header: Option<(&'static str, AMQPValue)>,
    status: &'static str,
    text: &'static str,
}

/// A case that is `invalid_input`, in the premium tier; the error must contain `text`.
fn case(name: &'static str, model: &'static str, body: impl Into<Vec<u8>>, text: &'static str) -> Case {
    Case { name, model, body: body.into(), header: None, status: "invalid_input", text }
}

impl Case {
    fn header(mut self, name: &'static str, value: AMQPValue) -> Self {
        self.header = Some((name, value));
        self
    }

    /// A binary body whose JSON header is said to have this many bytes more than it has.
    fn binary(self, tensors: &[u8], off_by: i64) -> Self {
        let length = i64::try_from(self.body.len()).expect("small") + off_by;
        let body = [&self.body, tensors].concat();
        Self { body, ..self }.header(HEADER_LENGTH, AMQPValue::LongLongInt(length))
    }

    fn status(mut self, status: &'static str) -> Self {
        self.status = status;
        self
    }
}

fn input(name: &str, datatype: &str, shape: &str, rest: &str) -> String {
    format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":{shape},{rest}}}"#)
}

fn json(inputs: &str) -> String {
    format!(r#"{{"inputs":[{inputs}]}}"#)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Bodies that are no message.
fn malformed() -> Vec<Case> {
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
        case("header length is text", "four", raw(16), HEADER_LENGTH).header(HEADER_LENGTH, text("long")),
        case("header length is negative", "four", raw(16), HEADER_LENGTH)
            .header(HEADER_LENGTH, AMQPValue::LongInt(-1)),
        case("budget is text", "four", four(), "x-budget-ms").header("x-budget-ms", text("soon")),
        case("budget is a table", "four", four(), "x-budget-ms")
            .header("x-budget-ms", AMQPValue::FieldTable(Default::default())),
        case("version 0", "four", four(), "x-model-version").header("x-model-version", AMQPValue::LongInt(0)),
    ]
}

/// Messages that do not fit the model, and values that its datatypes do not have.
fn misfits() -> Vec<Case> {
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
        case("body above the limit", "four", vec![b' '; 4097], "limit is 4096").status("too_large"),
        // 2,000 bytes in, about 5,500 out.
        case("result above the limit", "FP32", raw("FP32", "[1,500]", 2000), "limits.max_body_bytes is 4096")
            .binary(&1.234_567e-3_f32.to_le_bytes().repeat(500), 0)
            .status("too_large"),
    ]
}

async fn check(foreign: &mut Foreign, case: &Case) {
    let mut properties = foreign.properties();
    if let Some((name, value)) = &case.header {
        properties = with_header(properties, name, value.clone());
    }
    let id = foreign.request_with(&format!("{}.premium", case.model), properties, &case.body).await;
    let answer = foreign.reply(PATIENCE).await.unwrap_or_else(|| panic!("{}: no answer", case.name));
    assert_eq!((&answer.id, answer.status.as_str()), (&id, case.status), "{}: {answer:?}", case.name);
    let error = answer.body["error"].as_str().unwrap_or_default();
    assert!(error.contains(case.text), "{}: `{error}` lacks `{}`", case.name, case.text);
    assert_eq!(answer.body["code"], case.status, "{}", case.name);
}

/// Sends good requests to the same queues until told to stop; each must have its result.
async fn neighbour(client: Client, stop: Arc<AtomicBool>) -> usize {
    let mut served = 0;
    while !stop.load(Ordering::Relaxed) {
        for (model, shape) in [("four", vec![1, 4]), ("FP32", vec![2, 2])] {
            let tensor = Tensor::new("x", Datatype::Fp32, shape, vec![1; 16].into()).unwrap();
            let response =
                client.infer(Request::new(model).tier("premium").input(tensor.clone())).await.unwrap();
            assert_eq!(response.tensor("y").unwrap().data, tensor.data);
            served += 1;
        }
    }
    served
}

#[tokio::test]
async fn malformed_input_gets_a_typed_reply_and_harms_no_neighbour() {
    let stack = stack().set("LIMITS__MAX_BODY_BYTES", "4096");
    let _worker = stack.worker();
    let client = stack.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = tokio::spawn(neighbour(client.clone(), Arc::clone(&stop)));
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;

    for case in malformed().iter().chain(&misfits()) {
        check(&mut foreign, case).await;
    }
    odd_but_allowed(&mut foreign).await;
    through_the_library(&client).await;

    stop.store(true, Ordering::Relaxed);
    let served = neighbour.await.expect("every good request was served");
    assert!(served >= 10, "the neighbour was hardly there: {served}");
    assert!(foreign.leftovers().await.is_empty(), "nothing was answered twice");
    client.close().await;
}

/// What looks odd and has a meaning.
async fn odd_but_allowed(foreign: &mut Foreign) {
    // Not a number has a spelling in JSON, both ways.
    let data = r#""data":["NaN","Infinity","-Infinity",-0.5]"#;
    foreign.request("four.free", json(&input("x", "FP32", "[1,4]", data)).as_bytes()).await;
    let answer = foreign.reply(PATIENCE).await.unwrap();
    assert_eq!(answer.data(), &serde_json::json!(["NaN", "Infinity", "-Infinity", -0.5]), "{answer:?}");

    // `correlation_id` stands in for a missing `message_id`; without either nobody could tell what is answered.
    let properties = BasicProperties::default().with_reply_to(foreign.reply_key().into());
    foreign
        .publish("four.free", properties.clone().with_correlation_id("mine".into()), &rows(&[[1.0; 4]]))
        .await;
    let answer = foreign.reply(PATIENCE).await.unwrap();
    assert_eq!((answer.id.as_str(), answer.status.as_str()), ("mine", "ok"));
    foreign.publish("four.free", properties, &rows(&[[1.0; 4]])).await;
    let answer = foreign.reply(PATIENCE).await.unwrap();
    assert_eq!((answer.id.as_str(), answer.status.as_str()), ("", "invalid_input"));
}

async fn through_the_library(client: &Client) {
    let tensor = |datatype, shape: &[i64], size: usize| Tensor {
        name: "x".into(),
        datatype,
        shape: shape.to_vec(),
        data: vec![1; size].into(),
    };
    for (model, tensor, code) in [
        ("four", tensor(Datatype::Int32, &[1, 4], 16), Code::InvalidInput),
        ("four", tensor(Datatype::Fp32, &[4], 16), Code::InvalidInput),
        ("four", tensor(Datatype::Fp32, &[9, 4], 144), Code::InvalidInput),
        ("FP32", tensor(Datatype::Fp32, &[1, 2000], 8000), Code::TooLarge),
    ] {
        let error = client.infer(Request::new(model).input(tensor)).await.unwrap_err();
        assert!(matches!(&error, Error::Failed { worker, .. } if !worker.is_empty()), "{error}");
        assert_eq!(error.code(), code, "{error}");
        assert!(!error.is_retryable(), "{error}");
    }
    // What contradicts itself is not even sent.
    let neither = Tensor { data: vec![1, 2].into(), ..tensor(Datatype::Bool, &[1, 2], 2) };
    for tensor in [tensor(Datatype::Fp32, &[1, 4], 15), neither] {
        let error = client.infer(Request::new("four").input(tensor)).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(RequestError::Tensor { .. })), "{error}");
    }
}
