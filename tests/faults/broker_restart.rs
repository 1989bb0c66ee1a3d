//! The broker restarts, in order or by a crash, with requests in flight and with replies waiting for a client that is away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_producer::{Client, Request};
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::load::{Plan, Trial, say};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(90);
const IN_FLIGHT: usize = 60;
const WAITING: usize = 20;

/// A worker and a client over one type of queue.
struct Side {
    queue_type: &'static str,
    stack: Stack,
    worker: WorkerProcess,
    client: Client,
}

impl Side {
    async fn start(broker: &Broker, queue_type: &'static str) -> Self {
        let stack = Stack::on(&broker.amqp_url())
            .set("TOPOLOGY__QUEUE_TYPE", queue_type)
            .config("slow", &format!("max_batch_size = 1\n{ONE_INSTANCE}"))
            .model("slow", &models::slow(20));
        let worker = stack.worker();
        Self { queue_type, worker, client: stack.client().await, stack }
    }

    async fn over_a_restart(&self, restart_now: mpsc::Sender<()>) {
        let (away, ids) = self.leave_replies_waiting().await;
        self.keep_requests_in_flight(restart_now).await;
        let mut back = Foreign::with_key(self.stack.amqp_url(), self.stack.prefix(), away.reply_key()).await;
        back.listen().await;
        // A crash may undo an acknowledgement that the broker had not written: then a reply comes twice, as promised.
        let (answers, _) = back.answers(&ids, PATIENCE).await;
        for (number, id) in ids.iter().enumerate() {
            answers[id].assert_row(number as f32);
        }
    }

    /// Sends requests and lets their replies pile up.
    async fn leave_replies_waiting(&self) -> (Foreign, Vec<String>) {
        let away = Foreign::idle(self.stack.amqp_url(), self.stack.prefix()).await;
        let mut ids = Vec::new();
        for number in 0..WAITING {
            ids.push(away.request("slow.premium", &rows(&[[number as f32; 4]])).await);
        }
        let all_wait = async || away.depth(&away.reply_queue()).await as usize == WAITING;
        eventually("the replies wait for the client that is away", PATIENCE, all_wait).await;
        (away, ids)
    }

    /// Has the broker restarted when some requests are answered, one is running, and most wait.
    async fn keep_requests_in_flight(&self, restart_now: mpsc::Sender<()>) {
        let requests = (0..IN_FLIGHT).map(|number| {
            let row = Array2::from_elem((1, 4), number as f32);
            Request::new("slow").deadline(PATIENCE).input_array("x", row.view()).unwrap()
        });
        let mut results = self.client.stream(stream::iter(requests.collect::<Vec<_>>()), IN_FLIGHT);
        let mut answered = BTreeSet::new();
        while let Some((number, result)) = results.next().await {
            let response = result.unwrap_or_else(|error| panic!("{}, {number}: {error}", self.queue_type));
            let own = Array2::from_elem((1, 4), number as f32).into_dyn();
            assert_eq!(response.array::<f32>("y").unwrap(), own, "{}, {number}", self.queue_type);
            assert!(answered.insert(number), "{}: {number} answered twice", self.queue_type);
            if answered.len() == 5 {
                restart_now.send(()).await.unwrap();
            }
        }
        assert_eq!(answered.len(), IN_FLIGHT, "{}", self.queue_type);
    }

    async fn finish(mut self) {
        // What the worker held at a restart was delivered again, and its second reply dropped; that is over, too.
        let foreign = Foreign::idle(self.stack.amqp_url(), self.stack.prefix()).await;
        eventually("nothing is left to do", PATIENCE, async || {
            let fleet = self.client.fleet().await;
            let is_idle = fleet.workers().flat_map(|worker| &worker.lanes).all(|lane| lane.bytes == 0);
            let premium = foreign.depth("request.slow.premium").await;
            is_idle && premium + foreign.depth("request.slow.free").await == 0
        })
        .await;
        for queue in ["dead", "dead.inbox"] {
            assert_eq!(foreign.depth(queue).await, 0, "{}: {queue}", self.queue_type);
        }
        self.client.close().await;
        self.worker.terminate();
        assert_eq!(self.worker.wait(READY).unwrap().code(), Some(0), "{}", self.worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_over_broker_restarts_with_classic_and_quorum_queues() {
    let options = BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() };
    let mut broker = Broker::start(options).unwrap();
    let quorum = Side::start(&broker, "quorum").await;
    let classic = Side::start(&broker, "classic").await;
    let stop: fn(&mut Broker) = |broker| broker.stop().expect("it stops in order");
    let crash: fn(&mut Broker) = |broker| broker.kill().expect("it dies");
    for end in [stop, crash] {
        let (restart_now, mut asked) = mpsc::channel(2);
        let restarted = async move {
            for _ in 0..2 {
                asked.recv().await.expect("both sides have requests in flight");
            }
            let restarting = tokio::task::spawn_blocking(move || {
                end(&mut broker);
                broker.start_again().expect("it comes back");
                broker
            });
            restarting.await.unwrap()
        };
        let running = (quorum.over_a_restart(restart_now.clone()), classic.over_a_restart(restart_now));
        ((), (), broker) = tokio::join!(running.0, running.1, restarted);
    }
    quorum.finish().await;
    classic.finish().await;
}

/// Prints how soon the fleet is at its pace again: suspects, which all that was fetched is after a crash, must not hold it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: `cargo xtask faults`"]
async fn the_pace_is_back_soon_after_a_crash() {
    const NORMAL: Duration = Duration::from_secs(8);
    const SECOND: Duration = Duration::from_secs(1);
    let mut broker =
        Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Stack::on(&broker.amqp_url()).config("m", ONE_INSTANCE).model("m", &models::slow(2));
    let _workers = [stack.worker(), stack.worker()];
    let trial = Trial::begin("pace after a crash", &stack, stack.client().await, Plan::SINGLE).await;
    trial.load().flows(500).await;
    let normal = trial.load().pace(NORMAL).await;
    let restarted = tokio::task::spawn_blocking(move || {
        broker.kill().unwrap();
        broker.start_again().unwrap();
        broker
    });
    let _broker = restarted.await.unwrap();
    let opened = Instant::now();
    let first = trial.load().flows(1).await;
    let mut paces = Vec::new();
    while opened.elapsed() < Duration::from_secs(20) {
        paces.push(trial.load().pace(SECOND).await / normal);
    }
    let listed: Vec<String> = paces.iter().map(|pace| format!("{pace:.2}")).collect();
    say(format_args!(
        "fault pace after a crash: {normal:.0} requests a second before; first reply {first:?} after the port opened; then, of that pace and \
         second by second: {}",
        listed.join(" ")
    ));
    trial.end().await;
}
