//! `millrace dead`: what could not be answered is found, shown, sent again and removed, and what is only looked at stays.

use std::time::Duration;

use lapin::types::AMQPValue;
use millrace_harness::models;
use millrace_tests::foreign::{Foreign, rows, text_header, with_header};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn dead(stack: &Stack, arguments: &[&str]) -> (i32, String, String) {
    stack.millrace(&[&["dead"], arguments].concat(), &[])
}

fn listed(stack: &Stack, arguments: &[&str]) -> Vec<Value> {
    let (code, out, err) = dead(stack, &[&["list", "--json"], arguments].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

/// Puts a request among the dead, as a worker does.
async fn keep(foreign: &Foreign, prefix: &str, reason: &str, value: f32) -> String {
    let properties = with_header(foreign.properties(), "x-dead-reason", AMQPValue::LongString(reason.into()));
    // Its time was over long ago.
    let properties = with_header(properties, "x-budget-ms", AMQPValue::LongLongInt(1));
    let properties = with_header(properties, "x-published-ms", AMQPValue::LongLongInt(1));
    let id = properties.message_id().clone().unwrap().to_string();
    foreign.publish_to(&format!("{prefix}.dead"), "m.premium", properties, &rows(&[[value; 4]])).await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_found_shown_sent_again_and_removed() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let _worker = stack.worker();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let poison = keep(&foreign, stack.prefix(), "poison", 1.0).await;
    let refused = keep(&foreign, stack.prefix(), "reply_refused", 2.0).await;
    let hostile = keep(&foreign, stack.prefix(), "invalid_reply_to", 3.0).await;

    // More often than newer brokers deliver a message that has no limit of its own.
    for _ in 0..22 {
        assert_eq!(listed(&stack, &[]).len(), 3);
    }
    let ids = |letters: &[Value]| {
        letters.iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&listed(&stack, &["--reason", "poison"])), [poison.as_str()]);
    assert!(listed(&stack, &["--model", "other"]).is_empty());
    let (code, table, _) = dead(&stack, &["list"]);
    assert!(code == 0 && table.contains("reply_refused") && table.contains(&refused), "{table}");
    let (code, shown, _) = dead(&stack, &["show", &refused]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &shown["body"]["inputs"][0]["data"][0]), (0, &serde_json::json!(2.0)));
    assert_eq!(dead(&stack, &["show", "nobody"]).0, 1);
    assert_eq!(dead(&stack, &["redrive"]).0, 2, "which ones must be said");

    let (code, _, err) = dead(&stack, &["redrive", &refused]);
    assert_eq!(code, 0, "{err}");
    let answer = foreign.reply(PATIENCE).await.expect("it runs, with time of its own");
    answer.assert_row(2.0);
    assert_ne!(answer.id, refused, "it is another request");

    let (code, _, err) = dead(&stack, &["redrive", "--all"]);
    assert_eq!(code, 1, "neither is sent by the way: {err}");
    assert!(err.contains(&hostile) && err.contains(&poison) && err.contains("sent 0 of 2 again"), "{err}");
    let (code, _, err) = dead(&stack, &["redrive", &poison, &hostile]);
    assert_eq!(code, 1, "the hostile one never is: {err}");
    assert!(err.contains(&hostile) && err.contains("sent 1 of 2 again"), "{err}");
    foreign.reply(PATIENCE).await.expect("the other one runs").assert_row(1.0);

    let (code, _, err) = dead(&stack, &["purge", "--all"]);
    assert!(code == 0 && err.contains("1 would be removed"), "{err}");
    assert_eq!(ids(&listed(&stack, &[])), [hostile]);
    assert_eq!(dead(&stack, &["purge", "--all", "--yes"]).0, 0);
    assert!(listed(&stack, &[]).is_empty());
    assert!(foreign.leftovers().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_again_tells_what_it_was() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let mut worker = stack.worker();
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let former = keep(&foreign, stack.prefix(), "poison", 1.0).await;
    assert_eq!(dead(&stack, &["redrive", &former]).0, 0);
    eventually("it waits in its queue", PATIENCE, async || foreign.depth("request.m.premium").await == 1)
        .await;
    let again = foreign.get("request.m.premium").await.expect("just seen");
    assert_eq!(text_header(&again, "x-redrive-of"), former);
    assert_ne!(again.properties.message_id().as_ref().map(|id| id.as_str()), Some(former.as_str()));
    for header in ["x-dead-reason", "x-published-ms", "x-budget-ms"] {
        assert_eq!(text_header(&again, header), "", "{header}");
    }
    assert_eq!(again.data, rows(&[[1.0; 4]]));
    assert_eq!(foreign.depth("dead").await, 0);
}
