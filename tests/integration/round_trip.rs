//! Every datatype there and back, in JSON and in binary.

use millrace_harness::models;
use millrace_producer::{Client, Datatype, Error, Request, Tensor};
use millrace_tests::stack::Stack;

/// A tensor of shape [2, 3] with distinct elements.
fn tensor(datatype: Datatype) -> Tensor {
    let data: Vec<u8> = match datatype.element_size() {
        None => ["", "a", "bc", "ü", "\"\\", "x y"]
            .iter()
            .flat_map(|text| {
                [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
            })
            .collect(),
        Some(_) if datatype == Datatype::Bool => vec![0, 1, 1, 0, 1, 0],
        Some(size) => (0..6 * size).map(|i| u8::try_from(i * 5 % 120).unwrap()).collect(),
    };
    Tensor::new("x", datatype, vec![2, 3], data.into()).unwrap()
}

async fn round_trip(client: &Client, datatype: Datatype, request: Request) {
    let sent = tensor(datatype);
    let response = client.infer(request.tier("premium").input(sent.clone())).await.unwrap();
    let received = response.tensor("y").unwrap();
    assert_eq!(
        (received.datatype, &received.shape, &received.data),
        (datatype, &sent.shape, &sent.data),
        "{datatype}"
    );
    assert_eq!(response.body.model_version.as_deref(), Some("1"));
}

#[tokio::test]
async fn every_datatype_survives_in_json_and_binary() {
    let mut stack = Stack::new();
    for datatype in Datatype::ALL {
        stack = stack.model(datatype.as_str(), &models::identity(datatype.as_str()).unwrap());
    }
    let _worker = stack.worker();
    let client = stack.client().await;
    for &datatype in Datatype::ALL {
        round_trip(&client, datatype, Request::new(datatype.as_str())).await;
        round_trip(&client, datatype, Request::new(datatype.as_str()).json()).await;
    }
    bytes_that_are_no_text(&client).await;
    client.close().await;
}

async fn bytes_that_are_no_text(client: &Client) {
    let data = vec![2, 0, 0, 0, 0xff, 0xfe, 0, 0, 0, 0, 1, 0, 0, 0, b'a'];
    let sent = Tensor::new("x", Datatype::Bytes, vec![1, 3], data.into()).unwrap();
    let response = client.infer(Request::new("BYTES").input(sent.clone())).await.unwrap();
    assert_eq!(response.tensor("y").unwrap().data, sent.data);
    let error = client.infer(Request::new("BYTES").input(sent).json()).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(_)), "{error}");
}
