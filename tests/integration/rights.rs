//! The users of `millrace topology apply --users`: each role can do its work and is refused everything else.

use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use millrace_harness::broker;
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::foreign::{Foreign, rows, with_header};
use millrace_tests::management::User;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually};
use ndarray::Array2;

use crate::secrets::{CANARY, EVERYTHING, assert_process_silent, assert_silent};

const PASSWORDS: [&str; 5] = [
    "MILLRACE_USER_WORKER_PASSWORD",
    "MILLRACE_USER_PRODUCER_PASSWORD",
    "MILLRACE_USER_OPERATOR_PASSWORD",
    "MILLRACE_USER_PRODUCER_TRIAL_PASSWORD",
    "MILLRACE_USER_PRODUCER_PAYING_ONES_PASSWORD",
];
const PATIENCE: Duration = Duration::from_secs(20);

/// What somebody may try.
#[derive(Clone, Debug)]
enum Deed {
    /// To an exchange, with a key.
    Publish(String, String),
    Consume(String),
    Get(String),
    /// Its own queue to an exchange, with a key.
    Bind(String, String, String),
    DeclareQueue(String),
    DeclareExchange(String),
    DeleteQueue(String),
    Purge(String),
}

impl Deed {
    async fn attempt(&self, channel: &Channel) -> lapin::Result<()> {
        let none = FieldTable::default;
        match self.clone() {
            Self::Publish(exchange, key) => {
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                let properties = BasicProperties::default();
                let options = BasicPublishOptions::default();
                channel
                    .basic_publish(exchange.into(), key.into(), options, b"{}", properties)
                    .await?
                    .await
                    .map(drop)
            }
            Self::Consume(queue) => channel
                .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), none())
                .await
                .map(drop),
            Self::Get(queue) => channel.basic_get(queue.into(), BasicGetOptions::default()).await.map(drop),
            Self::Bind(queue, exchange, key) => {
                channel
                    .queue_bind(
                        queue.into(),
                        exchange.into(),
                        key.into(),
                        QueueBindOptions::default(),
                        none(),
                    )
                    .await
            }
            Self::DeclareQueue(queue) => {
                channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), none()).await.map(drop)
            }
            Self::DeclareExchange(exchange) => {
                let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, none()).await
            }
            Self::DeleteQueue(queue) => {
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.map(drop)
            }
            Self::Purge(queue) => {
                channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.map(drop)
            }
        }
    }
}

async fn attempt(user: &User, deed: &Deed) -> lapin::Result<()> {
    let connection = Connection::connect(user.amqp_url(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let result = deed.attempt(&channel).await;
    let _ = connection.close(200, "".into()).await;
    result
}

async fn refused(user: &User, deeds: &[Deed]) {
    for deed in deeds {
        let error = attempt(user, deed).await.expect_err(&format!("{} may {deed:?}", user.name()));
        assert!(error.to_string().contains("ACCESS_REFUSED"), "{}: {deed:?}: {error}", user.name());
    }
}

async fn allowed(user: &User, deeds: &[Deed]) {
    for deed in deeds {
        attempt(user, deed).await.unwrap_or_else(|error| panic!("{} may not {deed:?}: {error}", user.name()));
    }
}

struct Scene {
    stack: Stack,
    users: Vec<User>,
}

impl Scene {
    /// Applies topology and users as an operator would, the passwords in the environment.
    fn new() -> Self {
        let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(2.0));
        let stack = stack.set("TOPOLOGY__DECLARE", "false");
        let roles = ["worker", "producer", "operator", "producer-trial", "producer-paying-ones"];
        let users = roles.map(|role| User::existing(&format!("{}-{role}", stack.prefix()), CANARY)).into();
        let mut environment =
            vec![("MILLRACE_MANAGEMENT_URL", broker::shared().management_url.as_str()), EVERYTHING];
        environment.extend(PASSWORDS.map(|variable| (variable, CANARY)));
        let scene = Self { stack, users };
        let producers = ["--producer", "trial=free", "--producer", "paying-ones=premium,enterprise"];
        for command in ["apply", "export"] {
            let arguments = [&["topology", command, "--models", "m", "--users"][..], &producers].concat();
            let (code, out, err) = scene.stack.millrace(&arguments, &environment);
            assert_eq!(code, 0, "{out}{err}");
            assert!(out.contains("producer-paying-ones"), "{out}{err}");
            assert_silent(command, &format!("{out}{err}"));
        }
        scene
    }

    fn user(&self, role: &str) -> &User {
        let name = format!("{}-{role}", self.stack.prefix());
        self.users.iter().find(|user| user.name() == name).expect("a role")
    }

    fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.stack.prefix())
    }

    fn publish(&self, exchange: &str, key: &str) -> Deed {
        Deed::Publish(self.name(exchange), key.to_owned())
    }

    async fn client(&self, role: &str) -> Client {
        let mut config = self.stack.client_config();
        config.broker.addresses = vec![self.user(role).amqp_url().parse().unwrap()];
        Client::connect(config).await.unwrap()
    }

    /// What nobody may do to somebody else's reply queue.
    async fn steal(&self) -> Vec<Deed> {
        let owner = self.user("producer-paying-ones");
        let queue = self.name(&format!("reply.{}.{}", owner.name(), "v".repeat(22)));
        allowed(owner, &[Deed::DeclareQueue(queue.clone())]).await;
        vec![
            Deed::Consume(queue.clone()),
            Deed::Get(queue.clone()),
            Deed::Purge(queue.clone()),
            Deed::DeleteQueue(queue.clone()),
            Deed::Bind(queue, self.name("reply"), "x".to_owned()),
        ]
    }

    /// What nobody may but an operator.
    fn never(&self) -> Vec<Deed> {
        let queues =
            ["request.m.premium", "solo.m", "dead", "dead.inbox", "switches"].map(|queue| self.name(queue));
        let mut deeds = queues.map(Deed::DeleteQueue).to_vec();
        deeds.extend([
            Deed::Publish(String::new(), self.name("request.m.premium")),
            Deed::Publish("amq.topic".to_owned(), "m.premium".to_owned()),
            self.publish("switches", ""),
            Deed::DeclareQueue(self.name("request.other.premium")),
            Deed::DeclareQueue("foreign".to_owned()),
            Deed::DeclareExchange(self.name("other")),
            Deed::Purge(self.name("dead")),
            Deed::Get(self.name("dead")),
            Deed::Consume(self.name("dead")),
        ]);
        deeds
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_can_do_its_work() {
    let scene = Scene::new();
    let worker_url = ("MILLRACE_AMQP_URL", scene.user("worker").amqp_url());
    let mut worker = scene.stack.worker_with(&[worker_url, EVERYTHING]);
    let row = Array2::from_elem((1, 4), 1.0f32);
    for (role, tiers) in [
        ("producer", &["premium", "enterprise", "free"][..]),
        ("producer-trial", &["free"]),
        ("producer-paying-ones", &["premium", "enterprise"]),
    ] {
        let client = scene.client(role).await;
        for tier in tiers {
            let request = Request::new("m").tier(*tier).input_array("x", row.view()).unwrap();
            let response =
                client.infer(request).await.unwrap_or_else(|error| panic!("{role}, {tier}: {error}"));
            assert_eq!(response.array::<f32>("y").unwrap()[[0, 0]], 2.0);
        }
        client.close().await;
        let url = ("MILLRACE_AMQP_URL", scene.user(role).amqp_url());
        let (code, out, err) = scene.stack.millrace(&["models"], &[url]);
        assert!(code == 0, "{role}: {out}{err}");
    }
    let operator = [
        ("MILLRACE_AMQP_URL", scene.user("operator").amqp_url()),
        ("MILLRACE_MANAGEMENT_URL", broker::shared().management_url.as_str()),
    ];
    let set = ["switch", "set", "tier.free.weight=2", "--reason", "a test"];
    for arguments in [&["dead", "list"][..], &["models"], &set, &["switch", "list"], &["switch", "log"]] {
        let (code, out, err) = scene.stack.millrace(arguments, &operator);
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    }
    assert!(worker.stderr().contains("a switch holds"), "a worker of least rights hears it");
    let producer = ("MILLRACE_AMQP_URL", scene.user("producer").amqp_url());
    let (code, out, err) = scene.stack.millrace(&set, &[producer]);
    assert!(code == 1 && err.contains("switches are the operator's"), "{code}: {out}{err}");
    allowed(
        scene.user("operator"),
        &[
            Deed::Get(scene.name("dead")),
            scene.publish("request", "m.free"),
            Deed::Purge(scene.name("request.m.free")),
        ],
    )
    .await;
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    // RabbitMQ 4.3 shows an exchange to those only who may configure it; the worker says that it cannot look, and goes on.
    let is_look = |line: &str| line.contains("configure access to exchange");
    let stderr = worker.stderr();
    let trouble = stderr.lines().find(|line| line.contains("ACCESS_REFUSED") && !is_look(line));
    assert_eq!(trouble, None);
    assert_process_silent(&worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_is_refused_the_rest() {
    let scene = Scene::new();
    let steal = scene.steal().await;
    for role in ["producer", "producer-trial"] {
        let user = scene.user(role);
        let own = scene.name(&format!("reply.{}.{}", user.name(), "o".repeat(22)));
        let good = [
            scene.publish("request", "m.free"),
            scene.publish("control", ""),
            Deed::DeclareQueue(own.clone()),
            Deed::Bind(own.clone(), scene.name("reply"), own.clone()),
            Deed::Get(own.clone()),
        ];
        allowed(user, &good).await;
        let queues =
            ["request.m.premium", "request.m.free", "solo.m", "dead.inbox"].map(|queue| scene.name(queue));
        for deed in [Deed::Consume, Deed::Get, Deed::Purge] {
            refused(user, &queues.clone().map(deed)).await;
        }
        let exchanges = ["reply", "dead", "dead.inbox", "solo", "retry.50", "status"];
        refused(user, &exchanges.map(|exchange| scene.publish(exchange, "m.free"))).await;
        let from = |exchange| Deed::Bind(own.clone(), scene.name(exchange), "#".to_owned());
        refused(user, &["request", "dead", "solo"].map(from)).await;
        let keys = ["m.gold", "m.premium.free", "m", "#", "a/b.free"];
        refused(user, &keys.map(|key| scene.publish("request", key))).await;
        refused(user, &steal).await;
        refused(user, &scene.never()).await;
        allowed(user, &[Deed::DeleteQueue(own)]).await;
    }
    let others = ["m.premium", "m.enterprise", "free.premium"].map(|key| scene.publish("request", key));
    refused(scene.user("producer-trial"), &others).await;
    refused(scene.user("producer-paying-ones"), &[scene.publish("request", "m.free")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_a_user_without_entries_are_refused_the_rest() {
    let scene = Scene::new();
    let steal = scene.steal().await;
    let nobody = User::without_rights(&format!("{}-nobody", scene.stack.prefix()), CANARY);
    for user in [scene.user("worker"), &nobody] {
        refused(user, &["m.premium", "m.free"].map(|key| scene.publish("request", key))).await;
        refused(user, &[scene.publish("control", "")]).await;
        refused(user, &steal).await;
        refused(user, &scene.never()).await;
    }
    refused(&nobody, &[Deed::Consume(scene.name("request.m.free")), scene.publish("reply", "x")]).await;
}

/// A worker of the least rights answers what it gets, keeps what is hostile, and passes on what it does not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_least_rights_settles_everything() {
    let scene = Scene::new();
    let url = ("MILLRACE_AMQP_URL", scene.user("worker").amqp_url());
    let mut worker = scene.stack.worker_with(&[url]);
    let prefix = scene.stack.prefix();
    let mut foreign = Foreign::connect(scene.stack.amqp_url(), prefix).await;
    for (version, status) in [(None, "ok"), (Some(7), "unknown_version")] {
        let mut properties = foreign.properties();
        if let Some(version) = version {
            let version = AMQPValue::LongInt(version);
            properties = with_header(properties, "x-model-version", version);
        }
        let id = foreign.request_with("m.free", properties, &rows(&[[1.0; 4]])).await;
        let answer = foreign.reply(PATIENCE).await.expect("an answer");
        assert_eq!((&answer.id, answer.status.as_str()), (&id, status), "{answer:?}");
    }
    let hostile = foreign.properties().with_reply_to("nobody".into());
    foreign.request_with("m.free", hostile, &rows(&[[1.0; 4]])).await;
    eventually("it is kept", PATIENCE, async || foreign.depth("dead").await == 1).await;
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
}
