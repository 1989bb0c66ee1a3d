//! Nobody reads a worker's standard error any more: it serves on, says what was lost once somebody reads again, and loses nothing of its
//! last words.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace_harness::models;
use millrace_harness::process::{Process, binary};
use millrace_tests::load::{Plan, Trial};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
/// Two lines of about 100 bytes are written for each: more than any pipe holds.
const ENOUGH: usize = 8_000;
const SOME: usize = 200;
const SAID: &str = "log lines were lost";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_log_nobody_reads_serves_on() {
    for format in ["text", "json"] {
        let stack = Stack::new()
            .config("m", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
            .model("m", &models::scale(1.0));
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(binary("millrace-worker").unwrap());
        command.envs(stack.environment()).env("RUST_LOG", "debug").env("MILLRACE__LOGS__FORMAT", format);
        let mut worker = Process::spawn_with_stderr(command, Stdio::from(writer)).unwrap();
        let client = stack.client().await;
        eventually("the worker is there", READY, async || client.fleet().await.workers().count() > 0).await;
        let trial = Trial::begin("stalled log reader", &stack, client, Plan::SINGLE).await;
        let took = trial.load().flows(ENOUGH).await;
        println!("{ENOUGH} requests with nobody who reads {format}: {took:?}");
        let reading = tokio::task::spawn_blocking(move || {
            let mut log = Vec::new();
            reader.read_to_end(&mut log).map(|_| String::from_utf8_lossy(&log).into_owned())
        });
        trial.load().flows(SOME).await;
        trial.end().await;
        worker.terminate();
        let status = tokio::task::spawn_blocking(move || worker.wait(READY).unwrap()).await.unwrap();
        assert_eq!(status.code(), Some(0));
        let log = tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap().unwrap();
        assert!(log.contains(SAID), "nothing was lost: {} bytes", log.len());
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        assert!(last.iter().any(|line| line.contains("drained")), "{last:?}");
        if format == "json" {
            let report = log.lines().find(|line| line.contains(SAID)).unwrap();
            let report: serde_json::Value = serde_json::from_str(report).unwrap();
            assert!(report["lost"].as_u64() > Some(0), "{report}");
        }
    }
}
