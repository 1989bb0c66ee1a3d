//! Workers killed every few seconds and the broker restarted every minute, under a load of single and packed requests, for as long as
//! wanted: `cargo xtask evidence endurance` runs it for half an hour.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::Client;
use millrace_tests::faulty::{self, RUNS_VARIABLE};
use millrace_tests::foreign::Foreign;
use millrace_tests::ledger::{Ledger, Limits, Verdict, What};
use millrace_tests::load::{HISTORY_VARIABLE, Load, Over, Plan, judged, note_residue, say, setting};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};

const WORKERS: usize = 4;
const KILL_EVERY: Duration = Duration::from_secs(5);
/// By turns in order and by a crash.
const RESTART_EVERY: Duration = Duration::from_secs(60);
/// Without being told to go on for longer.
const SHORT: u64 = 70;
/// Runs of one request, at most: one in company, one among suspects, three by itself.
const MOST_RUNS: u32 = 5;

/// Half of the messages carry one request,
const SINGLE: Plan = Plan { in_flight: 48, pause: Duration::from_millis(6), ..Plan::SINGLE };
/// the other half several, as far as they come to travel together.
const PACKED: Plan = Plan { burst: 4, ..SINGLE };

struct Fleet {
    stack: Stack,
    broker: Broker,
    workers: Vec<WorkerProcess>,
    runs: PathBuf,
    kills: usize,
    restarts: usize,
}

impl Fleet {
    fn start(runs: &Path) -> Self {
        let options = BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() };
        let broker = Broker::start(options).unwrap();
        let stack = Stack::on(&broker.amqp_url())
            .config("m", &format!("max_batch_size = 64\n{ONE_INSTANCE}"))
            .model("m", &models::scale(1.0));
        let mut fleet =
            Self { stack, broker, workers: Vec::new(), runs: runs.to_owned(), kills: 0, restarts: 0 };
        for _ in 0..WORKERS {
            let mut worker = fleet.worker();
            worker.wait_for_line("ready worker=", READY).unwrap();
            fleet.workers.push(worker);
        }
        fleet
    }

    fn worker(&self) -> WorkerProcess {
        self.stack.faulty_worker_with(&[(RUNS_VARIABLE, self.runs.to_str().unwrap())])
    }

    fn suffer(mut self, duration: Duration, over: Over) -> Self {
        let started = Instant::now();
        let (mut kill_at, mut restart_at) = (KILL_EVERY, RESTART_EVERY);
        while started.elapsed() < duration {
            std::thread::sleep(Duration::from_millis(20));
            if started.elapsed() >= kill_at {
                kill_at += KILL_EVERY;
                let number = self.kills % WORKERS;
                let worker = &mut self.workers[number];
                assert!(worker.is_running(), "a worker ended by itself:\n{}", worker.stderr());
                worker.kill().unwrap();
                self.workers[number] = self.worker();
                self.kills += 1;
            }
            if started.elapsed() >= restart_at {
                restart_at += RESTART_EVERY;
                match self.restarts % 2 {
                    0 => self.broker.stop().unwrap(),
                    _ => self.broker.kill().unwrap(),
                }
                self.broker.start_again().unwrap();
                self.restarts += 1;
                println!(
                    "[{:>6.1} s] {} kills, {} restarts",
                    started.elapsed().as_secs_f64(),
                    self.kills,
                    self.restarts
                );
            }
        }
        drop(over);
        self
    }
}

/// Two clients of one fleet: one sends each request by itself, the other packs.
async fn clients(stack: &Stack) -> (Client, Client) {
    let mut config = stack.client_config();
    config.requests.pack_linger_us = 0;
    let single = Client::connect(config.clone()).await.unwrap();
    config.requests.pack_linger_us = 2_000;
    (single, Client::connect(config).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes over a minute: `cargo xtask faults`"]
async fn kills_and_restarts_for_as_long_as_wanted() {
    let duration = Duration::from_secs(setting("MILLRACE_ENDURANCE_SECONDS").unwrap_or(SHORT));
    let folder = tempfile::tempdir().unwrap();
    let kept = std::env::var_os(HISTORY_VARIABLE).map(PathBuf::from);
    let history = kept.unwrap_or_else(|| folder.path().join("history.jsonl"));
    let ledger = Arc::new(Ledger::create(&history).unwrap());
    let runs = folder.path().join("runs");
    fs::create_dir(&runs).unwrap();
    let kept_runs = runs.clone();
    let fleet = tokio::task::spawn_blocking(move || Fleet::start(&kept_runs)).await.unwrap();
    let (url, prefix) = (fleet.stack.amqp_url().to_owned(), fleet.stack.prefix().to_owned());
    let (single, packing) = clients(&fleet.stack).await;
    let numbers = Arc::new(AtomicU32::new(1));
    let load = Load::start(single, SINGLE, &ledger, &numbers);
    let packed = Load::start(packing, PACKED, &ledger, &numbers);
    let (over, also) = (load.over(), packed.over());
    let suffering = tokio::task::spawn_blocking(move || {
        let fleet = fleet.suffer(duration, over);
        drop(also);
        fleet
    });
    let fleet = suffering.await.unwrap();
    for client in [load.end().await, packed.end().await] {
        ledger.note("pending requests", What::Residue { count: client.pending() as u64 });
        client.close().await;
    }
    let foreign = Foreign::idle(&url, &prefix).await;
    note_residue(&foreign, "m", &ledger).await;
    faulty::runs(&runs, |worker, number| {
        // A warm-up's rows are zeros.
        if number != 0.0 {
            ledger.note(number, What::Started { worker: worker.to_owned() });
        }
    })
    .unwrap();
    say(format_args!(
        "{} s, {} workers killed, {} broker restarts",
        duration.as_secs(),
        fleet.kills,
        fleet.restarts
    ));
    let verdict = judged("endurance", &ledger, Limits { starts: MOST_RUNS });
    // Nobody is poison, and nobody gave up.
    assert_eq!(verdict.ok, verdict.requests, "{verdict}");
    // As it was written.
    let again = Verdict::of_file(&history, Limits { starts: MOST_RUNS }).unwrap();
    assert_eq!(again, verdict);
}
