//! The broker runs out of memory or disk: it reads no publisher any more. Producers are told, nobody's memory grows, and all goes on
//! when the alarm is over.

use std::time::Duration;

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::models;
use millrace_producer::{Code, Error, Request};
use millrace_tests::load::{Plan, Trial};
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};
use ndarray::Array2;

const PATIENCE: Duration = Duration::from_secs(60);
const SOME: usize = 200;
/// A client that is refused asks again at once, without end.
const PLAN: Plan = Plan { pause: Duration::from_millis(5), ..Plan::SINGLE };
/// How long an alarm lasts, with a client that goes on asking.
const ALARM: Duration = Duration::from_secs(5);

/// What raises an alarm, and what ends it.
const ALARMS: [(&str, [&[&str]; 2]); 2] = [
    (
        "memory",
        [
            &["set_vm_memory_high_watermark", "absolute", "1MB"],
            &["set_vm_memory_high_watermark", "absolute", "1GB"],
        ],
    ),
    ("disk", [&["set_disk_free_limit", "99999GB"], &["set_disk_free_limit", "50MB"]]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_stops_publishers_and_nothing_else() {
    let broker = Broker::start(BrokerOptions { plugins: Vec::new(), ..BrokerOptions::default() }).unwrap();
    let stack = Stack::on(&broker.amqp_url()).config("m", ONE_INSTANCE).model("m", &models::slow(2));
    let mut worker = stack.worker();
    let trial = Trial::begin("alarms", &stack, stack.client().await, PLAN).await;
    trial.load().flows(SOME).await;
    let client = stack.client().await;
    for (alarm, [raise, end]) in ALARMS {
        let ended = trial.load().ended();
        broker.ctl(raise).unwrap();
        // Connections are blocked by their first publish after it.
        eventually("a producer is told", PATIENCE, async || {
            let row = Array2::<f32>::zeros((1, 4));
            let request = Request::new("m").deadline(Duration::from_secs(3));
            match client.submit(request.input_array("x", row.view()).unwrap()).await {
                Err(Error::Refused { code: Code::Overloaded, retry_after: Some(_), .. }) => true,
                // On its way before anybody knew.
                Ok(_) | Err(Error::UnknownOutcome { .. } | Error::DeadlineExceeded { .. }) => false,
                Err(error) => panic!("{alarm}: {error}"),
            }
        })
        .await;
        tokio::time::sleep(ALARM).await;
        println!("{alarm} alarm: {} requests ended meanwhile", trial.load().ended() - ended);
        broker.ctl(end).unwrap();
        trial.load().flows(SOME).await;
    }
    assert!(worker.is_running(), "{}", worker.stderr());
    client.close().await;
    trial.end_refused().await;
}
