//! A big model breaks under load: each tier gets what its ladder says, marked as such, and the model itself again soon after it is
//! mended.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Code, Error, Request, Response};
use millrace_tests::faulty::BROKEN_VARIABLE;
use millrace_tests::load::say;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

/// How long the breaker stays open.
const OPEN: Duration = Duration::from_secs(3);
/// After the model is mended nobody gets a degraded answer any more.
const RECOVERED_WITHIN: Duration = Duration::from_secs(8);
const BIG: f32 = 2.0;
const SMALL: f32 = 3.0;
const DEFAULT: f32 = -1.0;
const VALUE: f32 = 1.1;

/// Requests of every tier, all the time; the last outcome of each is what counts.
async fn ask(client: &Client, tier: &str, refuses_degraded: bool) -> Result<Response, Error> {
    let row = Array2::from_elem((1, 4), VALUE);
    let mut request = Request::new("big").tier(tier).input_array("x", row.view()).unwrap();
    if refuses_degraded {
        request = request.refuse_degraded();
    }
    client.infer(request).await
}

fn factor(response: &Response) -> f32 {
    let y = response.array::<f32>("y").unwrap();
    let factor = y[[0, 0]];
    assert!(y.iter().all(|element| element.to_bits() == factor.to_bits()), "{y}");
    factor
}

/// Whether it says that the model was left alone, or failed.
fn is_labelled(response: &Response, level: &str) -> bool {
    let label = response.degraded().unwrap_or_default();
    label.strip_prefix(level).is_some_and(|reason| [";circuit_open", ";failed"].contains(&reason))
}

fn stack() -> Stack {
    let breaker = format!(
        "[circuit_breaker]\nsliding_window_size = 20\nminimum_number_of_calls = 10\nwait_duration_in_open_state_ms = {}\n",
        OPEN.as_millis()
    );
    let ladder = "[[degradation]]\ntiers = [\"premium\"]\nmodel = \"small\"\n[[degradation]]\ntiers = [\"premium\", \"free\"]\ndefault = \
                  \"default.json\"\n";
    let stack = Stack::new()
        .config("small", ONE_INSTANCE)
        .model("small", &models::scale(SMALL))
        .config("big", &format!("{ONE_INSTANCE}{breaker}{ladder}"))
        .model("big", &models::scale(BIG));
    let output = format!(
        r#"{{"name":"y","datatype":"FP32","shape":[1,4],"data":[{DEFAULT},{DEFAULT},{DEFAULT},{DEFAULT}]}}"#
    );
    let body = format!(r#"{{"model_name":"big","outputs":[{output}]}}"#);
    fs::write(stack.repository().join("big/default.json"), body).unwrap();
    stack
}

fn worker(stack: &Stack, broken: &Path) -> WorkerProcess {
    let mut worker = stack.faulty_worker_with(&[(BROKEN_VARIABLE, broken.to_str().unwrap())]);
    worker.wait_for_line("ready worker=", READY).unwrap();
    worker
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_model_is_stood_in_for_and_comes_back() {
    let (stack, broken) = (stack(), tempfile::tempdir().unwrap());
    let worker = worker(&stack, broken.path());
    let client = stack.client().await;
    let own = async |tier| {
        let response = ask(&client, tier, false).await.unwrap();
        assert_eq!((factor(&response), response.degraded()), (VALUE * BIG, None), "{tier}");
    };
    for tier in ["premium", "enterprise", "free"] {
        own(tier).await;
    }
    // What the small model gives by itself, to the bit.
    let row = Array2::from_elem((1, 4), VALUE);
    let direct = client.infer(Request::new("small").input_array("x", row.view()).unwrap()).await.unwrap();

    fs::write(broken.path().join("big"), "").unwrap();
    let is_open = || worker.stderr().contains("to=open");
    eventually("the breaker opens", READY, async || {
        // Until then each failure itself goes down the ladder, or is told.
        let response = ask(&client, "premium", false).await.unwrap();
        assert_eq!(response.tensor("y").unwrap().data, direct.tensor("y").unwrap().data);
        assert!(is_labelled(&response, "model:small:1"), "{:?}", response.degraded());
        is_open()
    })
    .await;
    // After each wait some are tried with the model, and fail.
    let mut refused = 0;
    for _ in 0..20 {
        let premium = ask(&client, "premium", false).await.unwrap();
        assert_eq!(factor(&premium), VALUE * SMALL);
        assert!(is_labelled(&premium, "model:small:1"), "{:?}", premium.degraded());
        assert_eq!((premium.body.model_name.as_str(), premium.meta.model_version), ("small", Some(1)));
        let free = ask(&client, "free", false).await.unwrap();
        assert_eq!(factor(&free), DEFAULT);
        assert!(is_labelled(&free, "default"), "{:?}", free.degraded());
        for (tier, refuses_degraded) in [("enterprise", false), ("premium", true)] {
            match ask(&client, tier, refuses_degraded).await.unwrap_err() {
                Error::Failed { code: Code::Unavailable, retry_after: Some(pause), .. } => {
                    assert!(pause <= OPEN, "{pause:?}");
                    refused += 1;
                }
                error => assert_eq!(error.code(), Code::BackendError, "{tier}: {error}"),
            }
        }
    }
    assert!(refused > 20, "half of them at least are refused at once: {refused}");
    // The small one breaks, too: the next rung.
    fs::write(broken.path().join("small"), "").unwrap();
    let premium = ask(&client, "premium", false).await.unwrap();
    assert_eq!((factor(&premium), premium.degraded()), (DEFAULT, Some("default;failed")));

    fs::remove_file(broken.path().join("small")).unwrap();
    fs::remove_file(broken.path().join("big")).unwrap();
    let mended = Instant::now();
    let mut last_degraded = Duration::ZERO;
    while mended.elapsed() < RECOVERED_WITHIN + Duration::from_secs(3) {
        for tier in ["premium", "free"] {
            let response = ask(&client, tier, false).await.unwrap();
            if response.degraded().is_some() {
                last_degraded = mended.elapsed();
            }
        }
    }
    for line in worker.stderr().lines().filter(|line| line.contains("circuit breaker")) {
        println!("{line}");
    }
    say(format_args!(
        "fault broken model: last degraded answer {last_degraded:?} after it was mended, breaker open for {OPEN:?}"
    ));
    assert!(last_degraded < RECOVERED_WITHIN, "{last_degraded:?}");
    for tier in ["premium", "enterprise", "free"] {
        own(tier).await;
    }
    client.close().await;
}
