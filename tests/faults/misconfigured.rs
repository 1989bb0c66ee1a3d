//! What is wrong before anything runs: typing errors in configurations, a broker whose queues are others, model files that are none. Each
//! ends the program at once, with its documented exit code and a text that names key, value and remedy.

use std::fs;
use std::path::Path;
use std::process::Command;

use millrace_harness::models;
use millrace_harness::process::{Process, binary};
use millrace_producer::Client;
use millrace_tests::foreign::Foreign;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};

/// Configuration is wrong.
const WRONG: Option<i32> = Some(2);
/// Could not start, for a reason outside of the configuration.
const FAILED: Option<i32> = Some(1);

fn stack() -> Stack {
    Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0))
}

/// Runs a binary that must end by itself; returns its exit code and what it printed.
fn end_of(program: &str, stack: &Stack, arguments: &[&str], more: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(binary(program).unwrap());
    command.args(arguments).envs(stack.environment()).envs(more.iter().copied());
    let mut process = Process::spawn(command).unwrap();
    let status = process.wait(READY).unwrap();
    (status.code(), format!("{}{}", process.stdout(), process.stderr()))
}

fn assert_says(what: &str, text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{what}: `{part}` is missing from:\n{text}");
    }
    assert!(!text.contains("panicked"), "{what}: {text}");
}

/// Keys that the tests' environment sets.
const OVERRIDDEN: [(&str, &str); 2] =
    [("broker.addresses", "MILLRACE_AMQP_URL"), ("topology.prefix", "MILLRACE__TOPOLOGY__PREFIX")];

/// A line of TOML, and what the text must say of it.
type Typo = (&'static str, &'static [&'static str]);

/// What worker and client read alike.
const SHARED: [Typo; 9] = [
    ("broker.adresses = [\"amqp://a:b@c/d\"]", &["unknown field `adresses`", "addresses"]),
    ("broker.addresses = []", &["`broker.addresses` is empty", "MILLRACE_AMQP_URL"]),
    ("broker.heartbeat_seconds = 0", &["`broker.heartbeat_seconds` is 0", "from 1 to 300"]),
    ("broker.heartbeat_seconds = \"often\"", &["broker.heartbeat_seconds", "often"]),
    ("topology.queue_type = \"quorums\"", &["topology.queue_type", "`quorums`", "quorum or classic"]),
    ("topology.prefix = \"a b\"", &["`topology.prefix` is a b", "A-Z a-z 0-9 _ -"]),
    ("topology.retry_delays_ms = [5, 5]", &["`topology.retry_delays_ms` is [5, 5]", "ascending"]),
    ("limits.max_body_bytes = 1", &["`limits.max_body_bytes` is 1", "from 1024 to"]),
    ("[brokers]\nheartbeat_seconds = 1", &["unknown field `brokers`", "broker"]),
];

const WORKERS: [Typo; 4] = [
    ("worker.grace_seconds = 0", &["`worker.grace_seconds` is 0", "from 1 to 3600"]),
    ("worker.grace = 5", &["unknown field `grace`", "grace_seconds"]),
    ("scheduling.lane_max_bytes = 1", &["`scheduling.lane_max_bytes` is 1", "from 1048576 to"]),
    ("models.serve = [\"n\"]", &["models.serve names `n`"]),
];

const CLIENTS: [Typo; 4] = [
    ("requests.tier = \"gold\"", &["`requests.tier` is gold", "topology.tiers"]),
    ("requests.deadline = 5", &["unknown field `deadline`", "deadline_ms"]),
    ("requests.deadline_ms = 0", &["`requests.deadline_ms` is 0", "from 1 to"]),
    ("requests.max_in_flight = 0", &["`requests.max_in_flight` is 0", "from 1 to 100000"]),
];

const MODELS: [Typo; 6] = [
    ("max_batch_size = 0", &["`max_batch_size` is 0", "from 1 to 65536"]),
    ("max_batch_sise = 8", &["unknown field `max_batch_sise`", "max_batch_size"]),
    ("max_batch_size = \"many\"", &["max_batch_size", "many"]),
    ("[[instance_group]]\nkind = \"tpu\"", &["kind", "unknown variant `tpu`", "cpu"]),
    ("[[instance_group]]\ngpus = [0]", &["`instance_group.gpus` is [0]", "kind = \"cuda\""]),
    ("inference_timeout_seconds = 0", &["`inference_timeout_seconds` is 0", "from 1 to"]),
];

#[test]
fn typing_errors_end_worker_and_client_with_key_value_and_remedy() {
    let stack = stack();
    let file = stack.repository().join("given.toml");
    let path = file.to_str().unwrap();
    let check = |program: &str, arguments: &[&str], typos: &[Typo]| {
        for (typo, parts) in typos {
            fs::write(&file, typo).unwrap();
            let mut command = Command::new(binary(program).unwrap());
            command.args(arguments).envs(stack.environment()).env("MILLRACE_CONFIG", path);
            // The environment goes before the file.
            for (key, variable) in OVERRIDDEN {
                if typo.starts_with(key) {
                    command.env_remove(variable);
                }
            }
            let mut process = Process::spawn(command).unwrap();
            let code = process.wait(READY).unwrap().code();
            let text = format!("{}{}", process.stdout(), process.stderr());
            assert_eq!(code, WRONG, "{program} {arguments:?}, {typo}: {text}");
            assert_says(typo, &text, parts);
        }
    };
    for arguments in [&[][..], &["--check-config"]] {
        check("millrace-worker", arguments, &SHARED);
        check("millrace-worker", arguments, &WORKERS);
    }
    check("millrace", &["models"], &SHARED);
    check("millrace", &["models"], &CLIENTS);
}

#[test]
fn typing_errors_in_a_models_configuration_do_too() {
    for (typo, parts) in MODELS {
        let bad = Stack::new().config("m", typo).model("m", &models::scale(1.0));
        let file = bad.repository().join("m").join("config.toml");
        for arguments in [&[][..], &["--check-config"]] {
            let (code, text) = end_of("millrace-worker", &bad, arguments, &[]);
            assert_eq!(code, WRONG, "{arguments:?}, {typo}: {text}");
            assert_says(typo, &text, parts);
            assert_says(typo, &text, &[file.to_str().unwrap()]);
        }
    }
}

/// What becomes of a model's file.
type Damage = fn(&Path);

#[test]
fn a_model_file_that_is_missing_or_damaged_is_named() {
    let cut: Damage = |file| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    };
    let folder: Damage = |file| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    };
    let cases: [(&str, Damage, Option<i32>, &[&str]); 6] = [
        (
            "missing",
            |file| fs::remove_file(file).unwrap(),
            WRONG,
            &["holds no version to serve", "m/1/model.onnx"],
        ),
        ("a folder", folder, WRONG, &["holds no version to serve", "m/1/model.onnx"]),
        (
            "empty",
            |file| fs::write(file, "").unwrap(),
            FAILED,
            &["model `m` version 1", "cannot load the model"],
        ),
        ("cut", cut, FAILED, &["model `m` version 1", "cannot load the model"]),
        ("text", |file| fs::write(file, "no model").unwrap(), FAILED, &["model `m` version 1", "model.onnx"]),
        ("a link to nowhere", dangling, WRONG, &["holds no version to serve"]),
    ];
    for (what, damage, wanted, parts) in cases {
        let stack = stack();
        let file = stack.repository().join("m").join("1").join("model.onnx");
        damage(&file);
        let (code, text) = end_of("millrace-worker", &stack, &[], &[]);
        assert_eq!(code, wanted, "{what}: {text}");
        assert_says(what, &text, &["cannot start", stack.repository().join("m").to_str().unwrap()]);
        assert_says(what, &text, parts);
        assert!(!text.contains("ready worker="), "{what}: {text}");
    }
}

fn dangling(file: &Path) {
    fs::remove_file(file).unwrap();
    std::os::unix::fs::symlink("nowhere.onnx", file).unwrap();
}

/// Where a client has declared what all share.
async fn prepared(stack: &Stack) -> Foreign {
    stack.client().await.close().await;
    Foreign::idle(stack.amqp_url(), stack.prefix()).await
}

#[tokio::test]
async fn queues_that_exist_with_other_arguments_are_named_with_the_remedy() {
    // A queue of the worker's model, and one that clients look for as well.
    for (queue, client_too) in [("request.m.free", false), ("retry.250", true), ("dead", true)] {
        let stack = stack();
        let foreign = prepared(&stack).await;
        foreign.delete(queue).await;
        foreign.declare_otherwise(queue).await;
        let named = format!("{}.{queue}", stack.prefix());
        let parts = [named.as_str(), "exists with other arguments", "millrace topology diff"];
        let (code, text) = end_of("millrace-worker", &stack, &[], &[]);
        assert_eq!(code, FAILED, "{queue}: {text}");
        assert_says(queue, &text, &parts);
        if client_too {
            let error = Client::connect(stack.client_config()).await.unwrap_err();
            assert_says(queue, &error.to_string(), &parts);
            let (code, text) = end_of("millrace", &stack, &["models"], &[]);
            assert_eq!(code, FAILED, "{queue}: {text}");
            assert_says(queue, &text, &parts);
        }
    }
}

#[tokio::test]
async fn a_reply_queue_that_exists_with_other_arguments_is_named() {
    let stack = stack();
    let key = format!("guest.{}", "r".repeat(22));
    let foreign = prepared(&stack).await;
    foreign.declare_otherwise(&format!("reply.{key}")).await;
    let client = Client::builder(stack.client_config()).reply_key(&key).connect().await;
    let error = client.unwrap_err().to_string();
    assert_says("reply queue", &error, &[&key, "exists with other arguments", "millrace topology diff"]);
}
