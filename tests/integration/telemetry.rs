//! ONNX Runtime's telemetry: it starts a thread and writes a spool into the user's folders, unless it is switched off
//! before the library is loaded. The worker does that, and the library alone, without our switch, shows that this test
//! would notice.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use millrace_harness::models;
use millrace_harness::process::{Process, binary};
use millrace_harness::setup;
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use millrace_worker::model::onnx::Runtime;
use tempfile::TempDir;

/// Set for the copy of this test program that loads the library without our switch.
const CONTROL_VARIABLE: &str = "MILLRACE_TEST_TELEMETRY_CONTROL";
const PATIENCE: Duration = Duration::from_secs(30);

/// The names of a process's threads; the runtime's own are left out, their number varies with its work.
fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut names: Vec<String> = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.starts_with("tokio"))
        .collect();
    names.sort();
    names
}

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    // What is removed meanwhile was not there in the end.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => drop(found.insert(entry.path())),
        }
    }
    found
}

/// A private home, so that the user's own files say nothing.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Starts a program as somebody who lives here, not in a CI (which switches the telemetry off), nothing else switched off.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.0.path())
            .env("XDG_CACHE_HOME", self.0.path().join("cache"))
            .env_remove("CI")
            .env_remove("ORT_DISABLE_TELEMETRY");
        command
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        files_below(self.0.path())
    }
}

/// Not a test by itself: the control, a process that loads the library without our switch and stays until it is killed.
#[test]
fn the_library_without_our_switch() {
    let Some(library) = std::env::var_os(CONTROL_VARIABLE) else { return };
    let before = threads(std::process::id()).len();
    let _runtime = Runtime::load(Path::new(&library)).unwrap();
    println!("started {} threads", threads(std::process::id()).len() - before);
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn a_worker_has_no_telemetry_thread_and_writes_nothing() {
    let home = Home::new();
    let mut command = home.command(&std::env::current_exe().unwrap());
    command
        .args(["--exact", "telemetry::the_library_without_our_switch", "--nocapture"])
        .env(CONTROL_VARIABLE, setup::onnxruntime().unwrap());
    let mut control = Process::spawn(command).unwrap();
    let started = control.wait_for_line("started ", PATIENCE).unwrap();
    assert!(!started.contains("started 0"), "this library has no telemetry: the check would prove nothing");
    eventually("the library writes its spool", PATIENCE, async || !home.files().is_empty()).await;

    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let home = Home::new();
    let mut command = home.command(&binary("millrace-worker").unwrap());
    command.envs(stack.environment());
    let mut worker = Process::spawn(command).unwrap();
    worker.wait_for_line("ready worker=", READY).unwrap();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    foreign.request("m.premium", &rows(&[[1.0; 4]])).await;
    foreign.reply(PATIENCE).await.expect("an answer").assert_row(1.0);
    // The library's thread has the name of the one that loads it.
    let names = threads(worker.pid());
    assert_eq!(names.iter().filter(|name| *name == "millrace-worker").count(), 1, "{names:?}");
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    assert_eq!(home.files(), BTreeSet::new());
}
