//! Requests that end every process that runs them, or that no process gets done with: all others are answered, they are called poison
//! after few deaths, and nobody else is.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use lapin::Confirmation;
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Code, Request};
use millrace_tests::faulty::{ABORT, HANG};
use millrace_tests::foreign::{Foreign, rows, text_header};
use millrace_tests::load::{say, setting};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;
use nix::sys::signal::Signal;

/// The worker's exit code for a model that cannot be stopped.
const HUNG: i32 = 71;
const WORKERS: usize = 2;
const TIERS: [&str; 3] = ["premium", "enterprise", "free"];
/// Longer than all the deaths take.
const DEADLINE: Duration = Duration::from_secs(600);

/// Whether a worker that ended was ended by what it ran; fails where neither that nor its keeper ended it.
fn was_killed(worker: &mut WorkerProcess, is_stopped: bool) -> bool {
    let status = worker.wait(READY).unwrap();
    let was_killed = status.signal() == Some(Signal::SIGABRT as i32) || status.code() == Some(HUNG);
    assert!(was_killed || (is_stopped && status.success()), "{status}:\n{}", worker.stderr());
    was_killed
}

/// Starts workers again that ended, as an orchestrator does, until told not to. Returns how many ended by themselves.
fn keep_alive(stack: &Stack, is_over: &AtomicBool) -> usize {
    let mut workers: Vec<WorkerProcess> = (0..WORKERS).map(|_| stack.faulty_worker()).collect();
    let mut deaths = 0;
    while !is_over.load(Ordering::Relaxed) {
        for worker in workers.iter_mut().filter_map(|worker| (!worker.is_running()).then_some(worker)) {
            deaths += usize::from(was_killed(worker, false));
            *worker = stack.faulty_worker();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for worker in &mut workers {
        // One that was started a moment ago does not hear signals yet: it ends by them.
        worker.wait_for_line("ready worker=", READY).unwrap();
        worker.terminate();
        // All is over as soon as the last one is dead, which may not have been seen yet.
        deaths += usize::from(was_killed(worker, true));
    }
    deaths
}

/// Ends the workers' keeper, also after a panic.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Requests that are sent, good and guilty.
fn all() -> usize {
    setting("MILLRACE_POISON_AMONG").map_or(1_500, |requests| requests as usize)
}

/// Some requests among many, and how they come to the workers.
struct Case {
    fault: f32,
    guilty: &'static [usize],
    queue_type: &'static str,
    pack_linger_us: u64,
}

const CASE: Case = Case { fault: ABORT, guilty: &[700], queue_type: "quorum", pack_linger_us: 0 };

impl Case {
    /// Sends all and checks that each has its own answer, the guilty ones that they are poison.
    async fn send_all(&self, client: &Client) {
        let is_guilty = |number| self.guilty.contains(&number);
        assert!(self.guilty.iter().all(|&number| number < all()));
        let value = |number: usize| if is_guilty(number) { self.fault } else { number as f32 };
        let requests = (0..all()).map(|number| {
            let row = Array2::from_elem((1, 4), value(number));
            let request = Request::new("m").deadline(DEADLINE).tier(TIERS[number % TIERS.len()]);
            request.input_array("x", row.view()).unwrap()
        });
        let mut results = client.stream(stream::iter(requests), 200);
        let mut answered = 0;
        while let Some((number, result)) = results.next().await {
            answered += 1;
            match result {
                Ok(response) => {
                    assert!(!is_guilty(number), "request {number} ran");
                    let own = Array2::from_elem((1, 4), value(number)).into_dyn();
                    assert_eq!(response.array::<f32>("y").unwrap(), own, "request {number}");
                }
                Err(error) => {
                    assert_eq!((is_guilty(number), error.code()), (true, Code::Poison), "{number}: {error}");
                }
            }
        }
        assert_eq!(answered, all());
    }

    /// Returns how many processes it took.
    async fn deaths(self) -> usize {
        // No innocent shall be stopped on a busy machine.
        let timeout = if self.fault == HANG { 2 } else { 60 };
        let settings = format!("max_batch_size = 8\ninference_timeout_seconds = {timeout}\n{ONE_INSTANCE}");
        let stack = Stack::new()
            .set("TOPOLOGY__QUEUE_TYPE", self.queue_type)
            .config("m", &settings)
            .model("m", &models::scale(1.0));
        let mut config = stack.client_config();
        config.requests.pack_linger_us = self.pack_linger_us;
        let (url, prefix) = (stack.amqp_url().to_owned(), stack.prefix().to_owned());
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, told) = (Over(Arc::clone(&is_over)), Arc::clone(&is_over));
        let deaths = tokio::task::spawn_blocking(move || keep_alive(&stack, &told));
        let client = Client::connect(config).await.unwrap();
        eventually("a worker is there", READY, async || client.fleet().await.workers().count() > 0).await;
        self.send_all(&client).await;
        let foreign = Foreign::idle(&url, &prefix).await;
        let tiers = TIERS.map(|tier| format!("request.m.{tier}"));
        for queue in tiers.iter().map(String::as_str).chain(["solo.m", "dead.inbox"]) {
            eventually(queue, READY, async || foreign.depth(queue).await == 0).await;
        }
        // People can see what they were, and why they are there. Their copies are confirmed before their callers are answered.
        let mut kept = HashSet::new();
        while let Some(letter) = foreign.get("dead").await {
            assert_eq!(text_header(&letter, "x-dead-reason"), "poison");
            // One may be kept twice: where the next one ended the process before the broker had the acknowledgement of its end.
            kept.insert(letter.properties.message_id().clone());
        }
        // A pack that is poison may be kept beside its guilty member.
        let most = self.guilty.len() + usize::from(self.pack_linger_us > 0);
        assert!((self.guilty.len()..=most).contains(&kept.len()), "{kept:?}");
        client.close().await;
        drop(over);
        let deaths = deaths.await.unwrap();
        say(format_args!(
            "fault poison, {} queue{}: {} requests, {} guilty; all others answered, {deaths} processes ended",
            self.queue_type,
            if self.pack_linger_us > 0 { ", packed" } else { "" },
            all(),
            self.guilty.len(),
        ));
        deaths
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ends_processes_is_poison_after_five_of_them() {
    // One in company, one among suspects, three by itself.
    assert_eq!(CASE.deaths().await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_in_a_classic_queue_is_poison_sooner() {
    // The queue does not count: from the first death on it runs by itself.
    assert_eq!(Case { queue_type: "classic", ..CASE }.deaths().await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_do_not_take_the_innocent_with_them() {
    let deaths = Case { guilty: &[100, 500, 501, 1_200], ..CASE }.deaths().await;
    // Two may share a batch, but none runs beside a suspect. One on its way to the queue of suspects while another ends the process
    // comes there twice, and its second copy has three runs of its own.
    assert!((3 * 4..=(5 + 3) * 4).contains(&deaths), "{deaths} processes ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_in_a_pack_does_not_take_the_others_with_it() {
    // The pack is poison, and then the one of its members that goes alone again as the others do.
    let deaths = Case { pack_linger_us: 2_000, ..CASE }.deaths().await;
    assert!((5..=10).contains(&deaths), "{deaths} processes ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_ends_is_poison_too() {
    assert_eq!(Case { fault: HANG, ..CASE }.deaths().await, 5);
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_stopped_and_the_next_one_has_its_time() {
    let settings = format!("inference_timeout_seconds = 1\nmodel_warmup = false\n{ONE_INSTANCE}");
    let stack = Stack::new().config("slow", &settings).model("slow", &models::slow(20_000));
    let mut worker = stack.worker();
    let client = stack.client().await;
    for _ in 0..2 {
        let started = Instant::now();
        let request = Request::new("slow").input_array("x", Array2::<f32>::zeros((1, 4)).view()).unwrap();
        let error = client.infer(request).await.unwrap_err();
        assert_eq!(error.code(), Code::BackendTimeout, "{error}");
        assert!(error.is_retryable());
        assert!(started.elapsed() >= Duration::from_secs(1), "stopped after {:?}", started.elapsed());
    }
    client.close().await;
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
}

/// Requests of model `m` in the queue of suspects, as a worker of the broker's user `guest` puts them there.
async fn suspects(foreign: &Foreign, stack: &Stack, count: usize) -> Vec<String> {
    let exchange = format!("{}.solo", stack.prefix());
    let mut ids = Vec::new();
    for _ in 0..count {
        let properties = foreign.properties();
        ids.push(properties.message_id().clone().unwrap().to_string());
        let confirmed = foreign.publish_to(&exchange, "m.free", properties, &rows(&[[1.0; 4]])).await;
        assert_eq!(confirmed, Confirmation::Ack(None));
    }
    ids
}

#[tokio::test]
async fn suspects_outlive_workers_that_stop_at_any_moment() {
    // More than may end with the process that runs them.
    const STOPS: u64 = 8;
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::slow(600));
    stack.worker().terminate();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let ids = suspects(&foreign, &stack, 3).await;
    for stop in 0..STOPS {
        let mut worker = stack.worker();
        // The first suspect runs after about a second.
        tokio::time::sleep(Duration::from_millis(700 + 150 * stop)).await;
        worker.terminate();
        assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
    }
    let _worker = stack.worker();
    let (answers, _) = foreign.answers(&ids, READY).await;
    assert!(answers.values().all(|answer| answer.status == "ok"), "{answers:?}");
}

#[tokio::test]
async fn a_missing_queue_of_suspects_holds_up_no_other() {
    let stack = Stack::new().model("a", &models::scale(1.0)).model("m", &models::scale(1.0));
    let _worker = stack.worker();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    foreign.delete("solo.a").await;
    let ids = suspects(&foreign, &stack, 2).await;
    let (answers, _) = foreign.answers(&ids, READY).await;
    assert!(answers.values().all(|answer| answer.status == "ok"), "{answers:?}");
}
