//! Cases in chunks: a repository, a worker and queues for each, gone when it is judged.

use std::fs;
use std::path::Path;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};
use millrace_common::amqp::topology::{QueueKind, Topology};
use millrace_producer::Client;
use millrace_tests::stack::{READY, Stack, eventually};

use crate::reference::{Expected, Prepared};
use crate::verdict::Verdict;
use crate::wire;

/// Models of one worker.
const MODELS: usize = 200;
/// Workers at a time: while one waits for the broker to declare its queues, the other loads its models or runs them.
const WORKERS: usize = 2;
/// Cases in flight for each worker: enough to keep it busy.
const IN_FLIGHT: usize = 32;
/// Queues deleted at a time, each on a channel of its own.
const DELETING: usize = 8;

/// One tier instead of three: a third of the queues to declare.
const CONFIG: &str = r#"
[[topology.tiers]]
name = "premium"
weight = 1
max_length = 1000
max_length_bytes = 536870912
default_budget_ms = 60000
"#;
/// One instance, and no run before the first request.
const MODEL_CONFIG: &str = "model_warmup = false\n[[instance_group]]\ncount = 1\n";

/// Judges every case.
pub(crate) async fn judge_all(prepared: Vec<Prepared>) -> Vec<(String, Verdict)> {
    // Classic queues are declared faster, and the queue's kind is not the matter here.
    let stack = Stack::new().set("TOPOLOGY__QUEUE_TYPE", "classic");
    let config_file = stack.repository().join("worker.toml");
    fs::write(&config_file, CONFIG).unwrap();
    let mut config = stack.client_config();
    config.topology.tiers.truncate(1);
    config.requests.tier = config.topology.tiers[0].name.clone();
    let topology = config.topology.clone();
    let client = Client::connect(config).await.unwrap();
    let broker = Connection::connect(stack.amqp_url(), ConnectionProperties::default()).await.unwrap();

    let (stack, client, broker) = (&stack, client, &broker);
    let chunks = prepared.chunks(MODELS).enumerate().map(|(number, cases)| {
        let repository = stack.repository().join(number.to_string());
        let (client, topology, config_file) = (&client, &topology, &config_file);
        async move {
            let chunk = Chunk { stack, cases, repository: &repository, config_file };
            let verdicts = chunk.judge(client).await;
            let mut queues = Topology::default();
            for served in chunk.served() {
                queues.extend(Topology::model(topology, &served.case.model));
            }
            delete(broker, &queues).await;
            verdicts
        }
    });
    let verdicts: Vec<Vec<_>> = stream::iter(chunks).buffer_unordered(WORKERS).collect().await;
    // Its reply queue goes with it.
    client.close().await;
    delete(broker, &Topology::shared(&topology)).await;
    verdicts.into_iter().flatten().collect()
}

struct Chunk<'a> {
    stack: &'a Stack,
    cases: &'a [Prepared],
    repository: &'a Path,
    config_file: &'a Path,
}

impl Chunk<'_> {
    /// A model that does not load stops a worker at its start, by design; it is left out.
    fn served(&self) -> impl Iterator<Item = &Prepared> {
        self.cases.iter().filter(|prepared| !matches!(prepared.expected, Expected::Refused(_)))
    }

    async fn judge(&self, client: &Client) -> Vec<(String, Verdict)> {
        for Prepared { case, .. } in self.served() {
            let model = self.repository.join(&case.model);
            fs::create_dir_all(model.join("1")).unwrap();
            fs::copy(&case.file, model.join("1/model.onnx")).unwrap();
            fs::write(model.join("config.toml"), MODEL_CONFIG).unwrap();
        }
        let mut worker = self.stack.starting_worker(&[
            ("MILLRACE_CONFIG", self.config_file.to_str().unwrap()),
            ("MILLRACE__MODELS__REPOSITORY", self.repository.to_str().unwrap()),
        ]);
        eventually("the worker is ready", READY, async || {
            assert!(worker.is_running(), "the worker ended:\n{}", worker.stderr());
            worker.stderr().contains("ready worker=")
        })
        .await;
        let judging = stream::iter(self.cases)
            .map(|prepared| async { (prepared.case.name.clone(), wire::judge(client, prepared).await) });
        let verdicts: Vec<_> = judging.buffer_unordered(IN_FLIGHT).collect().await;
        worker.terminate();
        eventually("the worker is gone", READY, async || !worker.is_running()).await;
        let status = worker.wait(READY).unwrap();
        assert!(status.success(), "the worker did not drain ({status}):\n{}", worker.stderr());
        let is_calm = !worker.stderr().contains("connection to the broker lost");
        assert!(is_calm, "the worker lost its connection:\n{}", worker.stderr());
        verdicts
    }
}

/// Deletes queues and exchanges, so that a shared broker does not pile them up.
///
/// # Panics
/// When a queue still holds a message: a request that was not settled, a reply that was not taken, a dead letter.
async fn delete(broker: &Connection, topology: &Topology) {
    let share = topology.queues.len().div_ceil(DELETING);
    let deleting = topology.queues.chunks(share).map(|queues| async move {
        let channel = broker.create_channel().await.unwrap();
        for queue in queues {
            let name = || queue.name.as_str().into();
            // A stream holds no duties, and gives nothing out singly.
            if queue.kind != QueueKind::Stream {
                let left = channel.basic_get(name(), BasicGetOptions { no_ack: true }).await.unwrap();
                let left = left.map(|left| (left.delivery.redelivered, left.delivery.properties));
                assert!(left.is_none(), "left in {} (redelivered, properties): {left:?}", queue.name);
            }
            channel.queue_delete(name(), QueueDeleteOptions::default()).await.unwrap();
        }
    });
    join_all(deleting).await;
    let channel = broker.create_channel().await.unwrap();
    for exchange in &topology.exchanges {
        let name = exchange.name.as_str().into();
        channel.exchange_delete(name, ExchangeDeleteOptions::default()).await.unwrap();
    }
}
