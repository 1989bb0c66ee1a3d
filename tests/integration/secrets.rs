//! Passwords are printed nowhere: not in logs of the finest level, not in errors, not on a command line.

use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Request};
use millrace_tests::management::User;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, milestone};
use ndarray::Array2;

pub(crate) const CANARY: &str = "canary-Zb7kQ2";
/// What the library would say of itself is off by default; here even that is asked for.
pub(crate) const EVERYTHING: (&str, &str) = ("RUST_LOG", "trace,lapin=trace,ort=trace");

pub(crate) fn assert_silent(what: &str, text: &str) {
    assert_silent_of(what, text, CANARY);
}

/// The secret in the forms in which a program might print it.
pub(crate) fn assert_silent_of(what: &str, text: &str, secret: &str) {
    let bytes: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    for form in [secret.to_owned(), bytes.join(", "), hex] {
        let leak = text.lines().find(|line| line.contains(&form));
        assert!(leak.is_none(), "{what} shows the secret: {leak:?}");
    }
}

pub(crate) fn assert_process_silent(worker: &WorkerProcess) {
    assert_silent("standard error", &worker.stderr());
    assert_silent("standard output", &worker.stdout());
    let command_line = std::fs::read_to_string(format!("/proc/{}/cmdline", worker.pid())).unwrap_or_default();
    assert_silent("the command line", &command_line);
}

#[tokio::test]
async fn no_log_and_no_error_shows_a_password() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let user = User::create(&format!("ann-{}", stack.prefix()), CANARY, stack.prefix());
    let as_user = ("MILLRACE_AMQP_URL", user.amqp_url());
    let mut worker = stack.worker_with(&[as_user, EVERYTHING]);
    assert!(worker.stderr().contains("TRACE") || worker.stderr().contains("DEBUG"), "nothing could be seen");

    let mut config = stack.client_config();
    config.broker.addresses = vec![user.amqp_url().parse().unwrap()];
    assert_silent("the configuration", &format!("{config:?} {}", serde_json::to_string(&config).unwrap()));
    let client = Client::connect(config.clone()).await.unwrap();
    assert_silent("the client", &format!("{client:?}"));
    let row = Array2::from_elem((1, 4), 1.0f32);
    client.infer(Request::new("m").input_array("x", row.view()).unwrap()).await.unwrap();
    client.close().await;
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
    assert_process_silent(&worker);

    // A login that fails is where a password is printed, if anywhere.
    let wrong = format!("{CANARY}-wrong");
    let refused = user.amqp_url().replace(CANARY, &wrong);
    let mut worker = stack.starting_worker(&[("MILLRACE_AMQP_URL", &refused), EVERYTHING]);
    milestone(&mut worker, "waiting for the broker").await;
    assert_process_silent(&worker);
    config.broker.addresses = vec![refused.parse().unwrap()];
    let error = Client::connect(config).await.unwrap_err();
    assert_silent("the client's error", &format!("{error} {error:?}"));
    assert!(error.to_string().contains("check user and password"), "{error}");

    // So is an address with an error in it.
    for broken in [refused.replace("amqp:", "http:"), refused.replace("127.0.0.1:", "127.0.0.1:x")] {
        let mut worker = stack.spawn_worker(&["--check-config"], &[("MILLRACE_AMQP_URL", &broken)]);
        assert_eq!(worker.wait(READY).unwrap().code(), Some(2), "{}", worker.stderr());
        assert_process_silent(&worker);
    }
}
