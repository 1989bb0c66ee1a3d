//! A process ends with its owner, even when that is killed and can do nothing about it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_harness::process::{Process, ProcessId};

/// Set for the copy of this test program that starts a process and is then killed.
const OWNER_VARIABLE: &str = "MILLRACE_TEST_PROCESS_OWNER";
const GONE: Duration = Duration::from_secs(10);

#[test]
fn a_process_ends_with_its_killed_owner() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_of_a_process", "--nocapture"])
        .env(OWNER_VARIABLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.split_once("PROCESS ").map(|(_, rest)| rest.to_owned()))
        .expect("the owner names its process");
    let [pid, member, directory] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let processes = [pid, member].map(|pid| ProcessId::of(pid.parse().unwrap()).expect("the process runs"));
    assert!(Path::new(directory).is_dir());

    owner.kill().unwrap();
    owner.wait().unwrap();

    for process in processes {
        assert!(process.wait(GONE), "a process outlives its killed owner");
    }
    let deadline = Instant::now() + GONE;
    while Path::new(directory).exists() {
        assert!(Instant::now() < deadline, "left behind: {directory}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Not a test by itself: the process that `a_process_ends_with_its_killed_owner` kills.
#[test]
fn owner_of_a_process() {
    if std::env::var_os(OWNER_VARIABLE).is_none() {
        return;
    }
    let mut command = Command::new("sh");
    // Its output is a file in the directory that must go too.
    command.args(["-c", "readlink /proc/$$/fd/1; exec sleep 1000"]);
    let mut process = Process::spawn(command).unwrap();
    let output = process.wait_for_line("/", GONE).unwrap();
    let directory = Path::new(&output).parent().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & echo member $!; wait"]);
    let mut group = Process::spawn_group(command, tempfile::tempdir().unwrap()).unwrap();
    let member = group.wait_for_line("member ", GONE).unwrap();
    let member = member.trim_start_matches("member ");
    println!("PROCESS {} {member} {}", process.pid(), directory.display());
    // Until it is killed, or its own starter is gone and closes the pipe.
    let _ = std::io::stdin().lines().next();
}
