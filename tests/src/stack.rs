//! One test's stack: its own name prefix on the broker, its own model repository, its own workers.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_harness::broker;
use millrace_harness::models;
use millrace_harness::onnx::ModelProto;
use millrace_harness::process::{Process, WorkerProcess, binary};
use millrace_harness::setup;
use millrace_producer::{Client, Config};
use tempfile::{NamedTempFile, TempDir};

/// How long a worker may take to be ready, or to end, on a busy two-core machine.
pub const READY: Duration = Duration::from_secs(60);

/// A model's configuration that keeps the number of threads low: many workers run at once.
pub const ONE_INSTANCE: &str = "[[instance_group]]\ncount = 1\n";

/// A prefix, a repository and how to reach the broker.
pub struct Stack {
    prefix: String,
    repository: TempDir,
    amqp_url: String,
    settings: Vec<(String, String)>,
    /// What the environment cannot say; read by workers and clients alike.
    file: Option<NamedTempFile>,
}

impl Stack {
    /// An empty stack on the broker that this run's tests share.
    pub fn new() -> Self {
        Self::on(&broker::shared().amqp_url)
    }

    /// An empty stack on a broker of the test's own.
    pub fn on(amqp_url: &str) -> Self {
        let random = uuid::Uuid::new_v4().simple().to_string();
        Self {
            prefix: format!("t{}", &random[..12]),
            repository: tempfile::tempdir().expect("a temporary folder"),
            amqp_url: amqp_url.to_owned(),
            settings: Vec::new(),
            file: None,
        }
    }

    /// A stack of the same prefix, broker and settings with a repository of its own, still empty: for workers of one
    /// fleet that serve different things.
    pub fn beside(&self) -> Self {
        assert!(self.file.is_none(), "give each stack its file after taking it apart");
        Self { prefix: self.prefix.clone(), settings: self.settings.clone(), ..Self::on(&self.amqp_url) }
    }

    /// Gives every worker and client a configuration file.
    pub fn file(mut self, toml: &str) -> Self {
        let file = NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), toml).expect("the temporary file is writable");
        self.file = Some(file);
        self
    }

    /// Sets a configuration key of every worker and client, for example `TOPOLOGY__QUEUE_TYPE`.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((format!("MILLRACE__{key}"), value.to_owned()));
        self
    }

    /// Adds version 1 of a model.
    pub fn model(self, name: &str, model: &ModelProto) -> Self {
        self.version(name, 1, model)
    }

    /// Adds a version of a model.
    pub fn version(self, name: &str, version: u64, model: &ModelProto) -> Self {
        models::write(self.repository.path(), name, version, model).expect("the repository is writable");
        self
    }

    /// Adds a model's `config.toml`.
    pub fn config(self, name: &str, toml: &str) -> Self {
        models::write_config(self.repository.path(), name, toml).expect("the repository is writable");
        self
    }

    /// The name prefix on the broker.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The broker's address.
    pub fn amqp_url(&self) -> &str {
        &self.amqp_url
    }

    /// The model repository.
    pub fn repository(&self) -> &Path {
        self.repository.path()
    }

    /// Environment of a worker or command that joins this stack.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = setup::onnxruntime().expect("ONNX Runtime can be had");
        let mut environment = vec![
            ("MILLRACE_AMQP_URL".to_owned(), self.amqp_url.clone()),
            ("MILLRACE__TOPOLOGY__PREFIX".to_owned(), self.prefix.clone()),
            ("MILLRACE__MODELS__REPOSITORY".to_owned(), self.repository.path().display().to_string()),
            (setup::LIBRARY_VARIABLE.to_owned(), library.display().to_string()),
        ];
        if let Some(file) = &self.file {
            environment.push(("MILLRACE_CONFIG".to_owned(), file.path().display().to_string()));
        }
        environment.extend(self.settings.iter().cloned());
        environment
    }

    /// Starts a worker and waits until it consumes.
    pub fn worker(&self) -> WorkerProcess {
        self.worker_with(&[])
    }

    /// Starts a worker with more configuration of its own.
    pub fn worker_with(&self, more: &[(&str, &str)]) -> WorkerProcess {
        let mut worker = self.starting_worker(more);
        worker.wait_for_line("ready worker=", READY).expect("the worker gets ready");
        worker
    }

    /// Starts a worker without waiting.
    pub fn starting_worker(&self, more: &[(&str, &str)]) -> WorkerProcess {
        self.spawn_worker(&[], more)
    }

    /// Runs the worker's binary with arguments, and its environment with more of its own.
    pub fn spawn_worker(&self, arguments: &[&str], more: &[(&str, &str)]) -> WorkerProcess {
        self.spawn_as("millrace-worker", arguments, more)
    }

    /// Starts a worker whose back ends fail as requests tell them, without waiting; see [`faulty`](crate::faulty).
    pub fn faulty_worker(&self) -> WorkerProcess {
        self.faulty_worker_with(&[])
    }

    /// As [`Stack::faulty_worker`], with more environment.
    pub fn faulty_worker_with(&self, more: &[(&str, &str)]) -> WorkerProcess {
        self.spawn_as(crate::faulty::BINARY, &[], more)
    }

    fn spawn_as(&self, binary: &str, arguments: &[&str], more: &[(&str, &str)]) -> WorkerProcess {
        let own = self.environment();
        let mut environment: Vec<(&str, &str)> = own.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        environment.extend_from_slice(more);
        WorkerProcess::spawn_as(binary, arguments, &environment).expect("the worker binary is built")
    }

    /// Runs the `millrace` command to its end, with more environment: exit code, standard output, standard error.
    pub fn millrace(&self, arguments: &[&str], more: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = Command::new(binary("millrace").expect("the binary is built"));
        command.args(arguments).envs(self.environment()).envs(more.iter().copied());
        let mut process = Process::spawn(command).expect("it starts");
        let code = process.wait(READY).expect("it ends").code().expect("no signal ends it");
        (code, process.stdout(), process.stderr())
    }

    /// Starts a worker that is called `name` in replies and logs what it does step by step.
    pub fn talkative_worker(&self, name: &str) -> WorkerProcess {
        self.worker_with(&[("MILLRACE__WORKER__NAME", name), ("RUST_LOG", "debug")])
    }

    /// The configuration of clients of this stack.
    pub fn client_config(&self) -> Config {
        let file = self.file.as_ref().map(NamedTempFile::path);
        let mut config = Config::load(file).expect("the configuration is valid");
        config.broker.addresses = vec![self.amqp_url.parse().expect("a valid address")];
        config.topology.prefix.clone_from(&self.prefix);
        for (key, value) in &self.settings {
            let tls = &mut config.broker.tls;
            match key.as_str() {
                "MILLRACE__TOPOLOGY__QUEUE_TYPE" => {
                    config.topology.queue_type = value.clone().try_into().expect("a queue type");
                }
                "MILLRACE__TOPOLOGY__DECLARE" => config.topology.declare = value == "true",
                "MILLRACE__BROKER__TLS__CA_FILE" => tls.ca_file.clone_from(value),
                "MILLRACE__BROKER__TLS__CERTIFICATE_FILE" => tls.certificate_file.clone_from(value),
                "MILLRACE__BROKER__TLS__KEY_FILE" => tls.key_file.clone_from(value),
                _ => {}
            }
        }
        config
    }

    /// Connects a client.
    pub async fn client(&self) -> Client {
        Client::connect(self.client_config()).await.expect("the broker takes the client")
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits until the worker has printed a line that contains `pattern`, while the test's own tasks go on.
///
/// # Panics
/// When it ends without one, or takes longer than [`READY`].
pub async fn milestone(worker: &mut WorkerProcess, pattern: &str) {
    eventually(pattern, READY, async || {
        let is_running = worker.is_running();
        let is_there = worker.stderr().lines().any(|line| line.contains(pattern));
        assert!(is_running || is_there, "ended without `{pattern}`:\n{}", worker.stderr());
        is_there
    })
    .await;
}

/// Waits until `condition` holds.
///
/// # Panics
/// When that takes longer than `timeout`.
pub async fn eventually(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < timeout, "not within {timeout:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
