//! ONNX Runtime's telemetry: it starts a thread and writes a spool into the user's folders, unless it is switched off
//! before the library is loaded. The worker does that, and the library alone, without our switch, shows that this test
//! would notice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millrace_harness::models;
use millrace_harness::process::Process;
use millrace_harness::setup;
use millrace_tests::stack::{ONE_INSTANCE, Stack};
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

fn files_below(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("it exists").map(|entry| entry.expect("readable")) {
        found.insert(entry.path().strip_prefix(folder).expect("inside").display().to_string());
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        }
    }
    found
}

/// A private home, so that nothing is written anywhere else.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().expect("a temporary folder"));
        std::fs::create_dir(home.0.path().join("cache")).expect("a folder");
        home
    }

    /// Runs the rest of a command line as somebody who lives here, in no CI, with nothing switched off.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.0.path())
            .env("XDG_CACHE_HOME", self.0.path().join("cache"))
            .env_remove("CI")
            .env_remove("ORT_DISABLE_TELEMETRY");
        command
    }

    fn written(&self) -> BTreeSet<String> {
        files_below(self.0.path()).into_iter().filter(|file| file != "cache").collect()
    }
}

/// Not a test by itself: the library alone, without our switch.
#[test]
fn the_library_without_our_switch() {
    let Some(library) = std::env::var_os(CONTROL_VARIABLE) else { return };
    let before = threads(std::process::id());
    let _runtime = Runtime::load(Path::new(&library)).unwrap();
    let after = threads(std::process::id());
    println!("LOADED {} {}", before.len(), after.len());
    println!("{before:?} {after:?}");
    let _ = std::io::stdin().lines().next();
    std::thread::sleep(Duration::from_secs(20));
}

#[test]
fn a_worker_has_no_telemetry_thread_and_writes_nothing() {
    let home = Home::new();
    let mut command = home.command(&std::env::current_exe().unwrap());
    command
        .args(["--exact", "telemetry::the_library_without_our_switch", "--nocapture"])
        .env(CONTROL_VARIABLE, setup::onnxruntime().unwrap());
    let mut control = Process::spawn(command).unwrap();
    println!("{}", control.wait_for_line("LOADED", PATIENCE).unwrap());
    println!("{}", control.stdout());
    std::thread::sleep(Duration::from_secs(5));
    println!("{:?}", threads(control.pid()));
    println!("{:?}", home.written());

    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let home = Home::new();
    let mut command = home.command(&millrace_harness::process::binary("millrace-worker").unwrap());
    command.envs(stack.environment());
    let mut worker = Process::spawn(command).unwrap();
    worker.wait_for_line("ready worker=", PATIENCE).unwrap();
    println!("{:?}", threads(worker.pid()));
    println!("{:?}", home.written());
    println!("{}", worker.stderr());
}
