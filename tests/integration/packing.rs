//! Row packing: many small requests travel as few messages, and each caller sees only its own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, stream};
use millrace_harness::models;
use millrace_producer::{Client, Code, Error, Request, Response};
use millrace_tests::foreign::Foreign;
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(30);

fn request(model: &str, value: f32) -> Request {
    Request::new(model).input_array("x", Array2::from_elem((1, 4), value).view()).unwrap()
}

fn answers(response: &Response, value: f32) -> bool {
    response.array::<f32>("y").unwrap() == Array2::from_elem((1, 4), value).into_dyn()
}

/// A client that knows what the workers take.
async fn informed(stack: &Stack) -> Client {
    let client = stack.client().await;
    client.fleet().await;
    client
}

/// Else a client would send what it has in its first second a message each.
#[tokio::test]
async fn a_client_asks_who_is_there_and_is_told_at_once() {
    let stack = Stack::new().config("double", ONE_INSTANCE).model("double", &models::scale(2.0));
    let _worker = stack.worker();
    let foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let asked = foreign.tap("control", "").await;
    let client = stack.client().await;
    let mut question = None;
    eventually("it asks", PATIENCE, async || {
        question = foreign.get(&asked).await;
        question.is_some()
    })
    .await;
    client.close().await;

    let (question, heard) = (question.unwrap().data, foreign.tap("status", "#").await);
    let control = format!("{}.control", stack.prefix());
    let told = async || {
        eventually("they tell", PATIENCE, async || foreign.get(&heard).await.is_some()).await;
    };
    told().await;
    let started = Instant::now();
    for _ in 0..10 {
        foreign.publish_to(&control, "", foreign.properties(), &question).await;
        told().await;
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(7), "without being asked they take ten seconds: {took:?}");
}

fn messages<'a>(responses: impl IntoIterator<Item = &'a Response>) -> usize {
    responses.into_iter().map(|response| &response.meta.request_id).collect::<BTreeSet<_>>().len()
}

/// A task's turn ends after 128 ready channels and timers of the runtime; a set of results that looked at all others in vain each
/// time took a second for what is there at once.
#[tokio::test]
async fn a_task_that_awaits_a_thousand_results_takes_all_that_are_there_in_one_turn() {
    let settings = format!("max_batch_size = 16\n{ONE_INSTANCE}");
    let stack = Stack::new()
        .config("double", &settings)
        .model("double", &models::scale(2.0))
        .config("alone", &format!("batch_safe = false\n{settings}"))
        .model("alone", &models::scale(2.0));
    let _worker = stack.worker();
    let client = informed(&stack).await;
    for model in ["double", "alone"] {
        let submitted = join_all((0..1000).map(|_| client.submit(request(model, 1.0)))).await;
        let answered = async {
            while client.pending() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), answered).await.expect("all are answered");
        let mut outcomes: FuturesUnordered<_> =
            submitted.into_iter().map(|handle| handle.unwrap().outcome()).collect();
        let mut taken = 0;
        while let Some(Some(outcome)) = outcomes.next().now_or_never() {
            assert!(answers(&outcome.unwrap(), 2.0));
            taken += 1;
        }
        assert_eq!(taken, 1000, "{model}");
    }
}

#[tokio::test]
async fn rows_travel_together_and_every_caller_gets_its_own() {
    let settings = format!("max_batch_size = 16\n{ONE_INSTANCE}");
    let stack = Stack::new()
        .config("double", &settings)
        .model("double", &models::scale(2.0))
        .config("alone", &format!("batch_safe = false\n{settings}"))
        .model("alone", &models::scale(2.0));
    let _worker = stack.worker();
    let client = informed(&stack).await;

    let numbers = || (0..500u16).map(f32::from);
    let requests = numbers().map(|value| request("double", value).correlation_id(value.to_string()));
    let results: Vec<_> = client.stream(stream::iter(requests), 200).collect().await;
    assert_eq!(results.len(), 500);
    for (position, result) in &results {
        let response = result.as_ref().unwrap();
        assert!(answers(response, *position as f32 * 2.0), "{position}: {response:?}");
        assert_eq!(response.meta.correlation_id, Some(position.to_string()));
        assert_eq!(response.body.id, None);
    }
    let sent = messages(results.iter().map(|(_, result)| result.as_ref().unwrap()));
    assert!(sent < 150, "500 requests of a row travelled as {sent} messages");

    // In JSON, with ids of their own, and awaited by handle.
    let requests = numbers().take(40).map(|value| {
        let mut body =
            millrace_producer::InferRequest { id: Some(format!("b{value}")), ..Default::default() };
        let tensor = millrace_producer::Tensor::new(
            "x",
            millrace_producer::Datatype::Fp32,
            vec![1, 4],
            [value; 4].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        );
        body.inputs.push(tensor.unwrap());
        Request::from_body("double", body).json()
    });
    let handles = join_all(requests.map(|request| client.submit(request))).await;
    let replies = join_all(handles.into_iter().map(|handle| handle.unwrap().outcome())).await;
    let replies: Vec<Response> = replies.into_iter().map(Result::unwrap).collect();
    for (number, response) in replies.iter().enumerate() {
        assert!(answers(response, number as f32 * 2.0));
        assert_eq!(response.body.id, Some(format!("b{number}")));
    }
    assert!(messages(&replies) < 20);

    let alone = join_all(numbers().take(40).map(|value| client.infer(request("alone", value)))).await;
    let alone: Vec<Response> = alone.into_iter().map(Result::unwrap).collect();
    assert_eq!(messages(&alone), 40, "`batch_safe = false` shares nothing");
    let urgent = numbers().take(40).map(|value| client.infer(request("double", value).urgent()));
    let urgent: Vec<Response> = join_all(urgent).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(messages(&urgent), 40, "what is urgent does not wait for others");
    assert_eq!(client.pending(), 0);
    client.close().await;
}

#[tokio::test]
async fn only_the_guilty_row_fails_and_a_cancelled_one_disturbs_nobody() {
    let stack = Stack::new().config("failing", ONE_INSTANCE).model("failing", &models::failing());
    let worker = stack.worker();
    let client = informed(&stack).await;

    let value = |number: u16| if number == 23 { -1.0 } else { f32::from(number) };
    let results = join_all((0..60).map(|number| client.infer(request("failing", value(number))))).await;
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(response) => assert!(number != 23 && answers(response, number as f32)),
            Err(error) => assert!(number == 23 && error.code() == Code::BackendError, "{number}: {error}"),
        }
    }

    let mut waiting: Vec<_> =
        (0..60).map(|number| Box::pin(client.infer(request("failing", number as f32)))).collect();
    for future in &mut waiting {
        assert!(futures_util::poll!(future).is_pending());
    }
    waiting.truncate(45);
    waiting.drain(10..15);
    let results: Vec<_> = join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    assert!(messages(&results) < results.len(), "each travelled alone");
    assert_eq!(client.pending(), 0);

    // Nobody serves them any more: each runs into its own deadline.
    drop(worker);
    let impatient = |ms: u64| client.infer(request("failing", 1.0).deadline(Duration::from_millis(ms)));
    for result in join_all((0..30).map(|number| impatient(300 + number))).await {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded { .. } | Error::Failed { .. }), "{error}");
        assert_eq!(error.code(), Code::DeadlineExceeded);
    }
    let left = join_all((0..30).map(|_| impatient(60_000)));
    let closing = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.close().await;
    };
    let (left, ()) = tokio::join!(left, closing);
    assert!(left.into_iter().all(|result| result == Err(Error::Closed)), "the client was closed");
}
