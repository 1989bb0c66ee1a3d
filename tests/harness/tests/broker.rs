//! Private brokers: they serve, come back where they were, and are never left behind.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::process::ProcessId;

/// Set for the copy of this test program that starts a broker and is then killed.
const OWNER_VARIABLE: &str = "MILLRACE_TEST_BROKER_OWNER";
const GONE: Duration = Duration::from_secs(10);

/// The process group and the session of a process that runs.
fn group_and_session(pid: i32) -> Option<(i32, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything: state, parent, group, session.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(2).map_while(|field| field.parse().ok());
    Some((fields.next()?, fields.next()?))
}

#[test]
fn a_broker_serves_crashes_and_comes_back_on_its_port() {
    let mut broker = Broker::start(BrokerOptions::default()).unwrap();
    assert!(broker.version().starts_with(['3', '4']), "{}", broker.version());
    assert!(broker.memory_mib().unwrap() > 20);
    let [(own_group, own_session), (group, session)] =
        [i32::try_from(std::process::id()).unwrap(), broker.process().pid()]
            .map(|pid| group_and_session(pid).unwrap());
    assert_ne!(group, own_group, "a terminal's Ctrl-C would end it");
    assert_eq!(session, own_session, "Linux may schedule sessions apart");
    let vhost = format!("{}/api/vhosts/kept", broker.management_url());
    ureq::put(&vhost).send_empty().unwrap();

    let (port, crashed) = (broker.port(), broker.process());
    broker.kill().unwrap();
    assert!(!crashed.is_running());
    broker.start_again().unwrap();
    assert_eq!(broker.port(), port);
    assert_ne!(broker.process(), crashed);
    assert!(broker.start_again().is_err(), "it runs already");
    let vhosts = broker.ctl(&["list_vhosts"]).unwrap();
    assert!(vhosts.contains("kept"), "a crash lost data: {vhosts}");

    broker.stop().unwrap();
    assert!(!broker.process().is_running());
    let log = std::fs::read(broker.directory().join("node.log")).unwrap();
    assert!(String::from_utf8_lossy(&log).contains("SIGTERM received - shutting down"));

    let directory = broker.directory().to_owned();
    drop(broker);
    assert!(!directory.exists());
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");
}

#[test]
fn a_broker_ends_with_its_killed_owner() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_of_a_broker", "--nocapture"])
        .env(OWNER_VARIABLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.split_once("BROKER ").map(|(_, rest)| rest.to_owned()))
        .expect("the owner names its broker");
    let (pid, directory) = line.split_once(' ').unwrap();
    let node = ProcessId::of(pid.parse().unwrap()).expect("the broker runs");
    assert!(Path::new(directory).is_dir());

    owner.kill().unwrap();
    owner.wait().unwrap();

    assert!(node.wait(GONE), "the broker outlives its killed owner");
    let deadline = Instant::now() + GONE;
    while Path::new(directory).exists() || !processes_naming(directory).is_empty() {
        let left = processes_naming(directory);
        assert!(Instant::now() < deadline, "left behind: {directory}, processes {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Not a test by itself: the process that `a_broker_ends_with_its_killed_owner` kills.
#[test]
fn owner_of_a_broker() {
    if std::env::var_os(OWNER_VARIABLE).is_none() {
        return;
    }
    let options = BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() };
    let broker = Broker::start(options).unwrap();
    println!("BROKER {} {}", broker.process().pid(), broker.directory().display());
    // Until it is killed, or its own starter is gone and closes the pipe.
    let _ = std::io::stdin().lines().next();
}

/// Whatever still mentions the broker's directory on its command line or in its environment (epmd has it as `HOME`).
fn processes_naming(directory: &str) -> Vec<String> {
    let me = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != me)
        .filter(|pid| {
            ["cmdline", "environ"].iter().any(|file| {
                std::fs::read(format!("/proc/{pid}/{file}"))
                    .is_ok_and(|text| String::from_utf8_lossy(&text).contains(directory))
            })
        })
        .collect()
}
