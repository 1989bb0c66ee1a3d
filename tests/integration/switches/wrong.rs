//! Changes that are wrong.

use std::collections::BTreeMap;

use lapin::Confirmation;
use millrace_tests::foreign::Foreign;
use millrace_tests::stack::eventually;
use serde_json::{Value, json};

use super::{SOON, log, stack};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_wrong_anywhere_changes_nothing() {
    let stack = stack();
    let worker = stack.worker();
    let good = "tier.free.weight=3";
    for (bad, remedy) in [
        ("tier.gold.weight=2", "premium, enterprise, free"),
        ("tier.free.weight=0", "from 1 to 10000"),
        ("tier.free.wieght=2", "the switches are"),
        ("tier.free.weight=2", "given twice"),
        ("model.big.circuit_breaker=open", "forced_open or disabled"),
        ("feature.cache", "NAME=VALUE"),
    ] {
        let (code, _, err) = stack.millrace(&["switch", "set", good, bad, "--reason", "r"], &[]);
        assert!(code == 2 && err.contains(remedy), "{bad} ({code}): {err}");
    }
    for more in [["--for", "8d"], ["--for", "0s"], ["--reason", " "]] {
        let (code, _, err) =
            stack.millrace(&[&["switch", "set", good, "--reason", "r"], &more[..]].concat(), &[]);
        assert!(code == 2, "{more:?} ({code}): {err}");
    }
    let (code, _, err) = stack.millrace(&["switch", "clear", "tier.free.weight"], &[]);
    assert!(code == 2 && err.contains("does not hold"), "{err}");
    assert!(log(&stack).is_empty(), "none of it was published");

    // What does not come from the command is as hostile as anything.
    let foreign = Foreign::idle(stack.amqp_url(), stack.prefix()).await;
    let publish = async |body: Value| {
        let exchange = format!("{}.switches", stack.prefix());
        let properties = foreign.properties().with_user_id("guest".into());
        let body = serde_json::to_vec(&body).unwrap();
        assert_eq!(foreign.publish_to(&exchange, "", properties, &body).await, Confirmation::Ack(None));
    };
    let at_ms = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let set = |set: Value, at_ms: u64, seconds: u64| json!({"format": 1, "at_ms": at_ms, "seconds": seconds, "set": set, "reason": "r"});
    publish(json!("a switch")).await;
    publish(json!({"format": 1, "at_ms": at_ms, "clear": ["tier.free.wieght"], "reason": "r"})).await;
    let nobody = foreign.properties();
    let body = serde_json::to_vec(&set(json!({"tier.free.weight": "3"}), at_ms, 60)).unwrap();
    foreign.publish_to(&format!("{}.switches", stack.prefix()), "", nobody, &body).await;
    publish(set(json!({"tier.free.weight": "3", "tier.free.max_share": "7"}), at_ms, 60)).await;
    publish(set(json!({"tier.free.weight": "3"}), at_ms + 3_600_000, 60)).await;
    publish(set(json!({"tier.free.weight": "3"}), at_ms, 1 << 40)).await;
    publish(set(json!({"tier.premium.weight": "5"}), at_ms, 60)).await;
    let client = stack.client().await;
    eventually("the good one holds", SOON, async || {
        let fleet = client.fleet().await;
        let switches: Vec<_> = fleet.workers().map(|worker| worker.switches.clone()).collect();
        assert!(switches.iter().all(|switches| !switches.contains_key("tier.free.weight")), "{switches:?}");
        switches == [BTreeMap::from([("tier.premium.weight".to_owned(), "5".to_owned())])]
    })
    .await;
    assert_eq!(worker.stderr().matches("is no record").count(), 4, "{}", worker.stderr());
    assert!(worker.stderr().contains("has no user_id"), "{}", worker.stderr());
    client.close().await;
}
