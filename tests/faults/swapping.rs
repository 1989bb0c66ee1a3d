//! Versions that come, go, change and are broken while requests flow: nobody notices but by the version that answers.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Request, Response};
use millrace_tests::load::{Plan, Trial, gives, say};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually, milestone};
use ndarray::Array2;

/// Requests all the time, but not so many that nothing else has the processor. Version `n` of the model multiplies by `n`.
const PLAN: Plan = Plan { pause: Duration::from_millis(2), is_own: is_by_its_version, ..Plan::SINGLE };
/// Every answer that comes after a swap was told.
const PROBES: usize = 30;

fn is_by_its_version(number: f32, response: &Response) -> bool {
    let is_told =
        response.body.model_version == response.meta.model_version.map(|version| version.to_string());
    is_told && response.meta.model_version.is_some_and(|version| gives(response, number * version as f32))
}

fn stack() -> Stack {
    Stack::new().set("MODELS__POLL_SECONDS", "1").config("m", ONE_INSTANCE).version(
        "m",
        1,
        &models::scale(1.0),
    )
}

async fn ask(client: &Client) -> Response {
    let row = Array2::from_elem((1, 4), 1.0f32);
    let request = Request::new("m").tier("premium").input_array("x", row.view()).unwrap();
    client.infer(request).await.unwrap()
}

/// Every request is answered by this version from now on, by this factor.
async fn expect(client: &Client, version: u64, factor: f32) {
    for _ in 0..PROBES {
        let response = ask(client).await;
        assert_eq!(response.meta.model_version, Some(version));
        assert!(gives(&response, factor), "{:?}", response.array::<f32>("y"));
    }
}

fn remove(stack: &Stack, version: u64) {
    fs::remove_dir_all(stack.repository().join(format!("m/{version}"))).unwrap();
}

/// Writes it in one rename, as one should.
fn configure(stack: &Stack, toml: &str) {
    let staged = stack.repository().join("m/.config.toml");
    fs::write(&staged, toml).unwrap();
    fs::rename(staged, stack.repository().join("m/config.toml")).unwrap();
}

/// Lines of the worker that say something is wrong.
fn complaints(worker: &WorkerProcess) -> Vec<String> {
    let log = worker.stderr();
    log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).map(str::to_owned).collect()
}

/// A new model in the repository is told once, so this tells that it was looked at again; twice, since one look was under way.
async fn looked_twice(stack: &Stack, worker: &mut WorkerProcess, name: &str) {
    for name in [format!("{name}-a"), format!("{name}-b")] {
        models::write(stack.repository(), &name, 1, &models::scale(1.0)).unwrap();
        milestone(worker, &format!("model={name}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_come_go_and_change_under_load() {
    let stack = stack();
    let mut workers = [stack.worker(), stack.worker()];
    let client = stack.client().await;
    let trial = Trial::begin("versions that come and go", &stack, stack.client().await, PLAN).await;
    trial.load().flows(100).await;
    expect(&client, 1, 1.0).await;

    let began = Instant::now();
    models::write(stack.repository(), "m", 2, &models::scale(2.0)).unwrap();
    for worker in &mut workers {
        milestone(worker, "versions=[2] gone=[1]").await;
    }
    say(format_args!("fault new version: both workers serve it after {:?}", began.elapsed()));
    expect(&client, 2, 2.0).await;
    trial.load().flows(100).await;

    remove(&stack, 2);
    for worker in &mut workers {
        milestone(worker, "versions=[1] gone=[2]").await;
    }
    expect(&client, 1, 1.0).await;
    trial.load().flows(100).await;

    // Both, the newest of which is asked unless one is pinned; and the batches' limit is another from now on.
    models::write(stack.repository(), "m", 3, &models::scale(3.0)).unwrap();
    configure(&stack, &format!("max_batch_size = 5\nversion_policy = {{ all = {{}} }}\n{ONE_INSTANCE}"));
    for worker in &mut workers {
        milestone(worker, "versions=[1, 3]").await;
    }
    expect(&client, 3, 3.0).await;
    eventually("the directory knows", READY, async || {
        let fleet = client.fleet().await;
        let models: Vec<_> = fleet.workers().flat_map(|worker| &worker.models).collect();
        models.len() == 4 && models.iter().all(|model| model.max_batch_size == 5)
    })
    .await;
    let row = Array2::from_elem((1, 4), 7.0f32);
    let pinned = Request::new("m").version(1).input_array("x", row.view()).unwrap();
    assert!(gives(&client.infer(pinned).await.unwrap(), 7.0));
    trial.load().flows(100).await;
    trial.end().await;
    client.close().await;
    for worker in &workers {
        assert_eq!(complaints(worker), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_serves_under_its_version() {
    // Between the two nobody can tell; of no answer is a part by the one and a part by the other.
    let plan =
        Plan { is_own: |number, response| gives(response, number) || gives(response, number * 5.0), ..PLAN };
    let stack = stack();
    let mut worker = stack.worker();
    let client = stack.client().await;
    let trial = Trial::begin("a file that is replaced", &stack, stack.client().await, plan).await;
    trial.load().flows(100).await;
    models::write(stack.repository(), "m", 1, &models::scale(5.0)).unwrap();
    milestone(&mut worker, "versions=[1] gone=[1]").await;
    expect(&client, 1, 5.0).await;
    trial.load().flows(100).await;
    trial.end().await;
    client.close().await;
    assert_eq!(complaints(&worker), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_is_told_once_and_changes_nothing() {
    let stack = stack();
    let mut worker = stack.worker();
    let client = stack.client().await;
    let trial = Trial::begin("broken versions", &stack, stack.client().await, PLAN).await;
    trial.load().flows(100).await;

    configure(&stack, "max_batch = 3\n");
    milestone(&mut worker, "its configuration is refused").await;
    looked_twice(&stack, &mut worker, "one").await;
    expect(&client, 1, 1.0).await;
    // What can be read and cannot be had is refused whole, too, and the versions stay that it would let go.
    configure(&stack, "[[instance_group]]\nkind = \"cuda\"\n");
    milestone(&mut worker, "all of the model's versions stay as they were").await;
    expect(&client, 1, 1.0).await;
    configure(&stack, ONE_INSTANCE);

    // Cut off in the middle.
    let whole = models::write(stack.repository(), "elsewhere", 2, &models::scale(2.0)).unwrap();
    let bytes = fs::read(&whole).unwrap();
    let broken = stack.repository().join("m/2");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("model.onnx"), &bytes[..bytes.len() / 2]).unwrap();
    milestone(&mut worker, "m/2/model.onnx").await;
    eventually("the directory tells", READY, async || {
        let fleet = client.fleet().await;
        fleet.workers().any(|worker| worker.problems.iter().any(|problem| problem.contains("m/2/model.onnx")))
    })
    .await;
    looked_twice(&stack, &mut worker, "two").await;
    expect(&client, 1, 1.0).await;
    trial.load().flows(100).await;

    let staged = broken.join(".model.onnx");
    fs::copy(&whole, &staged).unwrap();
    fs::rename(staged, broken.join("model.onnx")).unwrap();
    milestone(&mut worker, "versions=[2] gone=[1]").await;
    expect(&client, 2, 2.0).await;
    eventually("the directory tells no more", READY, async || {
        client.fleet().await.workers().all(|worker| worker.problems.is_empty())
    })
    .await;
    for version in [1, 2] {
        remove(&stack, version);
    }
    milestone(&mut worker, "holds no version of it").await;
    looked_twice(&stack, &mut worker, "three").await;
    expect(&client, 2, 2.0).await;
    trial.end().await;
    client.close().await;

    let told = complaints(&worker);
    let of = |text: &str| told.iter().filter(|line| line.contains(text)).count();
    let texts = ["refused", "stay as they were", "m/2/model.onnx", "holds no version", "a new model"];
    assert_eq!(texts.map(of), [1, 1, 1, 1, 7], "{told:#?}");
    assert_eq!(told.len(), 11, "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stops_while_it_loads() {
    let stack = stack();
    let mut worker = stack.worker();
    let _other = stack.worker_with(&[("MILLRACE__MODELS__POLL_SECONDS", "0")]);
    let trial = Trial::begin("SIGTERM during a load", &stack, stack.client().await, PLAN).await;
    trial.load().flows(100).await;
    // Many sessions, none of which is done at once.
    configure(&stack, "[[instance_group]]\ncount = 32\n");
    models::write(stack.repository(), "m", 2, &models::mlp(models::MLP_MID)).unwrap();
    milestone(&mut worker, "loading model=m version=2").await;
    let began = Instant::now();
    worker.terminate();
    let (status, log) =
        tokio::task::spawn_blocking(move || (worker.wait(READY).unwrap(), worker.stderr())).await.unwrap();
    say(format_args!("fault SIGTERM during a load: {status} after {:?}", began.elapsed()));
    assert!(status.success(), "{status}: {log}");
    assert!(!log.contains("versions=[2]"), "it was to stop before it had loaded:\n{log}");
    trial.load().flows(100).await;
    trial.end().await;
}

/// Its instances' threads are called by model and version.
fn threads(worker: &WorkerProcess) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// Bytes in memory.
fn resident(worker: &WorkerProcess) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The same content, which is not the same file.
fn replace_big(repository: &Path, bytes: &[u8]) {
    let (staged, file) = (repository.join("big/1/.model.onnx"), repository.join("big/1/model.onnx"));
    fs::write(&staged, bytes).unwrap();
    fs::rename(staged, file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_swaps_leaves_nothing_behind() {
    const SWAPS: usize = 10;
    /// Of [`models::MLP_MID`].
    const WEIGHTS: u64 = 53 << 20;
    /// Of the runtime's pool for what blocks, which come and go; fewer than a thread a swap.
    const POOLED: usize = 3;
    let stack = stack().config("big", ONE_INSTANCE).model("big", &models::mlp(models::MLP_MID));
    let big = fs::read(stack.repository().join("big/1/model.onnx")).unwrap();
    let mut worker = stack.worker();
    let trial = Trial::begin("a storm of swaps", &stack, stack.client().await, PLAN).await;
    let mut marks = Vec::new();
    for swap in 0..SWAPS {
        let version = 2 + swap as u64;
        models::write(stack.repository(), "m", version, &models::scale(version as f32)).unwrap();
        remove(&stack, version - 1);
        replace_big(stack.repository(), &big);
        milestone(&mut worker, &format!("versions=[{version}]")).await;
        eventually("the big one is replaced", READY, async || {
            worker.stderr().matches("versions changed model=big").count() > swap
        })
        .await;
        // One instance of each, and whatever else there is.
        eventually("former instances end", READY, async || {
            let names = threads(&worker);
            names.iter().filter(|name| name.contains(':')).count() == 2
        })
        .await;
        marks.push((threads(&worker).len(), resident(&worker)));
    }
    trial.load().flows(100).await;
    trial.end().await;
    let ((threads_before, before), (_, after)) = (marks[1], marks[SWAPS - 1]);
    say(format_args!(
        "fault storm: {SWAPS} swaps of two models, {} MiB after the second, {} after the last; {threads_before} threads after the second",
        before >> 20,
        after >> 20
    ));
    assert!(after < before + 2 * WEIGHTS, "{marks:?}");
    eventually("no more threads than before", READY, async || {
        threads(&worker).len() <= threads_before + POOLED
    })
    .await;
    assert_eq!(complaints(&worker), [""; 0]);
    let counts = worker.stderr().matches("unloaded").count();
    assert_eq!(counts, 2 * SWAPS);
}
