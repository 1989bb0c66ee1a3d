//! What looks odd and is answered all the same, and what the client library makes of bad input.

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use millrace_producer::{Client, Code, Datatype, Error, Request, RequestError, Tensor};
use millrace_tests::foreign::{Foreign, rows, with_header};

use super::PATIENCE;

/// What looks odd and has a meaning.
pub(super) async fn allowed(foreign: &mut Foreign) {
    // Not a number has a spelling in JSON, both ways.
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":["NaN","Infinity","-Infinity",-0.5]}]}"#;
    foreign.request("four.free", body.as_bytes()).await;
    let answer = foreign.reply(PATIENCE).await.unwrap();
    assert_eq!(answer.data(), &serde_json::json!(["NaN", "Infinity", "-Infinity", -0.5]), "{answer:?}");

    // `correlation_id` stands in for a missing `message_id`; without either nobody could tell what is answered.
    let properties = BasicProperties::default().with_reply_to(foreign.reply_key().into());
    foreign
        .publish("four.free", properties.clone().with_correlation_id("mine".into()), &rows(&[[1.0; 4]]))
        .await;
    let answer = foreign.reply(PATIENCE).await.unwrap();
    assert_eq!((answer.id.as_str(), answer.status.as_str()), ("mine", "ok"));

    // Any priority, a time to live, a long correlation id, headers that mean nothing here.
    for priority in [0, 4, 5, 255] {
        let properties = foreign.properties().with_priority(priority).with_expiration("60000".into());
        let properties = properties.with_correlation_id("c".repeat(255).into()).with_app_id("../x".into());
        let properties = with_header(properties, "x-death", AMQPValue::LongString("forged".into()));
        let id = foreign.request_with("four.free", properties, &rows(&[[1.0; 4]])).await;
        let answer = foreign.reply(PATIENCE).await.unwrap();
        assert_eq!((&answer.id, answer.status.as_str()), (&id, "ok"), "priority {priority}: {answer:?}");
    }
}

pub(super) async fn through_the_library(client: &Client) {
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
