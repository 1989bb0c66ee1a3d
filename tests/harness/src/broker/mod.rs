//! Real, private RabbitMQ nodes that cannot be left behind.
//!
//! A node runs under a small shell supervisor that holds the reading end of a pipe. The pipe ends with the [`Broker`], or
//! with the process that owns it, be it by a panic, by `exit` or by SIGKILL; then the supervisor kills node and epmd
//! by their pids and removes the directory.

mod detached;
mod handshake;
mod node;
mod ports;
mod shared;
mod supervisor;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

pub use detached::DetachedBroker;
pub use shared::{AMQP_VARIABLE, MANAGEMENT_VARIABLE, SharedBroker, shared};

use crate::process::ProcessId;
use crate::setup::{self, RabbitMq};
use node::Node;
use ports::Ports;
use supervisor::Supervisor;

/// Names a root directory whose RabbitMQ is started instead of this machine's (`cargo xtask test --rabbitmq 4.3`).
pub const ROOT_VARIABLE: &str = "MILLRACE_RABBITMQ_ROOT";

/// Start-up takes 4 to 8 s on two idle cores; several nodes may start at once on busy ones.
const READY: Duration = Duration::from_secs(90);
const GRACEFUL_STOP: Duration = Duration::from_secs(30);
const KILLED: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What a private node is to be like.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Management, Prometheus and the exchange for shards by default; without any a node starts 2 s faster.
    pub plugins: Vec<String>,
    /// Lines of `rabbitmq.conf`; they replace the harness's own settings of the same section.
    pub config: Vec<String>,
    /// The whole `advanced.config`, in Erlang terms: `[{rabbit,[{consumer_timeout,5000}]}].`
    pub advanced_config: Option<String>,
    /// A second listener, for `amqps`; none by default.
    pub tls: Option<BrokerTls>,
    /// For the Erlang VM, such as `+S 1:1` for a single scheduler.
    pub erl_args: Option<String>,
    /// Root directory to run in; by default the one that [`ROOT_VARIABLE`] names.
    pub root: Option<PathBuf>,
    /// AMQP port; a free one by default.
    pub port: Option<u16>,
    /// For everything the node writes; a temporary one by default.
    pub directory: Option<PathBuf>,
    /// The cluster to join as the node starts; by default it is one of its own.
    pub cluster: Option<Cluster>,
}

/// What a node shows its clients over TLS, and asks of them. All PEM.
#[derive(Debug, Clone)]
pub struct BrokerTls {
    /// The authority whose client certificates it trusts.
    pub authority: String,
    pub certificate: String,
    pub key: String,
    /// Whether clients must have one.
    pub asks_for_certificates: bool,
}

/// What a node must know of a cluster to join it.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// A running node of it.
    node: String,
    /// What its nodes find each other by.
    epmd: u16,
    cookie: String,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            plugins: ["rabbitmq_management", "rabbitmq_prometheus", "rabbitmq_consistent_hash_exchange"]
                .map(str::to_owned)
                .to_vec(),
            config: Vec::new(),
            advanced_config: None,
            tls: None,
            erl_args: None,
            root: std::env::var_os(ROOT_VARIABLE).filter(|root| !root.is_empty()).map(PathBuf::from),
            port: None,
            directory: None,
            cluster: None,
        }
    }
}

/// A running (or stopped, or killed) private node. Dropping it kills the node and removes its data.
pub struct Broker {
    // Declared first, dropped first: nothing of the node may outlive this value.
    supervisor: Supervisor,
    node: Node,
    process: ProcessId,
    version: String,
    management: bool,
    tls: bool,
}

impl Broker {
    /// Starts a node, installing RabbitMQ first where there is none, and returns when it serves.
    ///
    /// # Errors
    /// What [`setup::rabbitmq`] meets; a node that ends, does not serve within 90 s or does not join its cluster, with the end of its log.
    pub fn start(options: BrokerOptions) -> Result<Self> {
        let rabbitmq = match &options.root {
            Some(root) => RabbitMq::in_root(root)?,
            None => setup::rabbitmq()?,
        };
        if let Some(port) = options.port {
            ensure!(
                ports::is_free(port),
                "port {port} is in use; choose another, or leave it out for a free one"
            );
        }
        // Between looking for free ports and the node's taking them another process may be faster.
        for _ in 0..2 {
            match Self::try_start(rabbitmq.clone(), &options) {
                Err(error) if format!("{error:#}").contains("eaddrinuse") => {}
                result => return result,
            }
        }
        Self::try_start(rabbitmq, &options)
    }

    fn try_start(rabbitmq: RabbitMq, options: &BrokerOptions) -> Result<Self> {
        let mut ports = Ports::pick(options.port)?;
        if let Some(cluster) = &options.cluster {
            ports.epmd = cluster.epmd;
        }
        let node = Node::create(rabbitmq, options, ports)?;
        let mut supervisor =
            Supervisor::start(&node).inspect_err(|_| drop(std::fs::remove_dir_all(&node.dir)))?;
        let process = supervisor.start_node(&node)?;
        let mut broker = Self {
            supervisor,
            node,
            process,
            version: String::new(),
            management: options.plugins.iter().any(|name| name == "rabbitmq_management"),
            tls: options.tls.is_some(),
        };
        broker.wait_until_ready()?;
        if let Some(cluster) = &options.cluster {
            let status = broker.ctl(&["cluster_status"])?;
            ensure!(
                status.contains(&cluster.node),
                "the node did not join {}:\n{}",
                cluster.node,
                broker.node.log_tail()
            );
        }
        Ok(broker)
    }

    /// `amqp://` address of the default virtual host, with user and password.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port())
    }

    /// `amqps://` address of the default virtual host at `host`, one of this machine's names.
    pub fn amqps_url(&self, host: &str) -> String {
        format!("amqps://guest:guest@{host}:{}/%2f", self.node.ports.tls)
    }

    /// Address of the management API, with user and password; it answers only if that plugin is on.
    pub fn management_url(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.node.ports.management)
    }

    /// Address of the Prometheus metrics; it answers only if that plugin is on.
    pub fn prometheus_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.node.ports.prometheus)
    }

    pub fn port(&self) -> u16 {
        self.node.ports.amqp
    }

    /// As the broker itself gives it, such as `3.10.8`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The Erlang VM: to freeze it (SIGSTOP), or to see it gone.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// What other nodes must know to join this one; it has to outlive them, for they find each other by its epmd.
    ///
    /// # Errors
    /// When the cookie cannot be read.
    pub fn cluster(&self) -> Result<Cluster> {
        Ok(Cluster {
            node: self.node.name(),
            epmd: self.node.ports.epmd,
            cookie: std::fs::read_to_string(self.node.dir.join("home/.erlang.cookie"))?,
        })
    }

    /// Where the node's files and its log `node.log` are.
    pub fn directory(&self) -> &Path {
        &self.node.dir
    }

    /// Memory of the Erlang VM that is in RAM.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn memory_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map(|kib| kib / 1024)
            .context("the node does not run")
    }

    /// Stops the node in order, as a maintenance restart does. Data and ports stay.
    ///
    /// # Errors
    /// When it is not gone within 30 s.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM);
        ensure!(
            self.process.wait(GRACEFUL_STOP),
            "the broker did not stop within {GRACEFUL_STOP:?}:\n{}",
            self.node.log_tail()
        );
        Ok(())
    }

    /// Ends the Erlang VM by SIGKILL, as a crash or a power cut does. Data and ports stay.
    ///
    /// # Errors
    /// When it is still there after 10 s.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL);
        ensure!(self.process.wait(KILLED), "the broker outlived its SIGKILL by {KILLED:?}");
        Ok(())
    }

    /// Starts the stopped or killed node again with the same data on the same ports.
    ///
    /// # Errors
    /// When it runs already, and as [`Broker::start`].
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.process.is_running(), "the broker runs; stop or kill it first");
        self.process = self.supervisor.start_node(&self.node)?;
        self.wait_until_ready()
    }

    /// Runs `rabbitmqctl -q` with `arguments` and returns what it prints. Takes about a second.
    ///
    /// # Errors
    /// When it fails, with its output.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.node.rabbitmqctl().arg("-q").args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "rabbitmqctl {}: {}\n{text}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Leaves the node running after this process; [`DetachedBroker::stop`] ends it.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn detach(self) -> Result<DetachedBroker> {
        Ok(DetachedBroker {
            amqp_url: self.amqp_url(),
            management_url: self.management_url(),
            version: self.version,
            directory: self.node.dir,
            supervisor: self.supervisor.detach()?,
            node: self.process,
        })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            match self.probe() {
                Ok(version) => {
                    self.version = version;
                    return Ok(());
                }
                Err(_) if !self.process.is_running() => {
                    bail!("RabbitMQ ended while starting:\n{}", self.node.log_tail());
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!(
                        "RabbitMQ does not serve after {READY:?}:\n{}",
                        self.node.log_tail()
                    )));
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn probe(&self) -> Result<String> {
        let version = handshake::version_at(self.port())?;
        if self.management {
            handshake::management_answers(&self.management_url())?;
        }
        if self.tls {
            // RabbitMQ 4.3 listens for TLS seconds later.
            std::net::TcpStream::connect(("127.0.0.1", self.node.ports.tls))?;
        }
        Ok(version)
    }
}
