//! `millrace submit`, interrupted politely and by force, goes on where it stopped.

use std::time::{Duration, Instant};

use millrace_harness::models;
use millrace_harness::process::Process;
use millrace_tests::batch::Batch;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};
use nix::sys::signal::Signal;

const LINES: usize = 6_000;
const IN_FLIGHT: usize = 64;

fn run_until(batch: &Batch, process: &mut Process, answers: usize) {
    let started = Instant::now();
    while batch.answered() < answers {
        assert!(process.is_running(), "ended early:\n{}\n{}", process.stdout(), process.stderr());
        assert!(started.elapsed() < READY, "{} of {answers} answers", batch.answered());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The number that stands before `what` in what a resumed run says of itself.
fn resumed(stderr: &str, what: &str) -> usize {
    let line = stderr.lines().find(|line| line.starts_with("resumed:")).expect("it says that it resumed");
    let (before, _) = line.split_once(what).unwrap_or_else(|| panic!("no `{what}` in: {line}"));
    let number = before.trim_end().rsplit(' ').next().expect("a number");
    number.replace(',', "").parse().unwrap()
}

#[test]
fn an_interrupted_batch_goes_on_and_answers_each_line_once() {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = 16\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(2));
    let mut worker = stack.worker();
    let batch = Batch::new(&stack, "slow", LINES, IN_FLIGHT);

    let mut first = batch.start();
    run_until(&batch, &mut first, LINES / 6);
    first.signal(Signal::SIGINT);
    assert_eq!(first.wait(READY).unwrap().code(), Some(130), "{}", first.stderr());
    assert!(first.stderr().contains("run the same command again"), "{}", first.stderr());
    assert!(batch.state_file().exists() && batch.answered() < LINES);

    // Killed twice, once early and once on the way; the answers that nobody took wait in the reply queue.
    for part in [2, 3] {
        let mut killed = batch.start();
        run_until(&batch, &mut killed, LINES * part / 6);
        killed.kill().unwrap();
        assert!(batch.answered() < LINES);
    }

    let mut last = batch.start();
    assert_eq!(last.wait(READY).unwrap().code(), Some(0), "{}", last.stderr());
    let again = resumed(&last.stderr(), "submitted again (bound: 64)");
    assert!(again <= IN_FLIGHT, "{again} lines were submitted again");
    // Most of what was in flight at the kill was answered soon after, into the queue that this run found again.
    assert!(resumed(&last.stderr(), "collected from the reply queue") > 0, "{}", last.stderr());
    batch.assert_complete();
    assert!(!batch.state_file().exists());
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
}
