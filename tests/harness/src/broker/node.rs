//! One node's directory, configuration files and environment: everything that keeps it apart from other nodes.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::BrokerOptions;
use super::ports::Ports;
use crate::process;
use crate::setup::RabbitMq;

/// Mounts what Erlang needs and becomes the command, so that its pid is the one we started. Runs in a mount namespace
/// of its own, whose mounts end with its last process.
const ENTER_ROOT: &str =
    "mount --rbind /proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && exec chroot \"$0\" \"$@\"";

pub(super) struct Node {
    rabbitmq: RabbitMq,
    /// As this process sees it.
    pub(super) dir: PathBuf,
    /// As the node does, which may have another root.
    inner: PathBuf,
    pub(super) ports: Ports,
    environment: BTreeMap<&'static str, String>,
}

impl Node {
    pub(super) fn create(rabbitmq: RabbitMq, options: &BrokerOptions, ports: Ports) -> Result<Self> {
        let dir = directory(&rabbitmq, options)?;
        let inner = match &rabbitmq.root {
            Some(root) => Path::new("/").join(dir.strip_prefix(root)?),
            None => dir.clone(),
        };
        let environment = environment(&inner, &ports, options);
        let node = Self { environment, rabbitmq, dir, inner, ports };
        // From here on the directory is removed by the supervisor, which does not run yet.
        node.write_files(options).inspect_err(|_| drop(fs::remove_dir_all(&node.dir)))?;
        Ok(node)
    }

    fn write_files(&self, options: &BrokerOptions) -> Result<()> {
        for sub in ["home", "data", "log", "conf.d"] {
            fs::create_dir_all(self.dir.join(sub))?;
        }
        let cookie = self.dir.join("home/.erlang.cookie");
        let secret = options.cluster.as_ref().map(|cluster| cluster.cookie.clone());
        fs::write(&cookie, secret.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>())))?;
        // Erlang refuses a cookie that others can read.
        fs::set_permissions(&cookie, Permissions::from_mode(0o400))?;
        fs::write(self.dir.join("env.conf"), "")?;
        let plugins = options.plugins.join(",");
        fs::write(self.dir.join("plugins"), format!("[{plugins}].\n"))?;
        let advanced = options.advanced_config.as_deref().unwrap_or("[].");
        fs::write(self.dir.join("advanced.config"), advanced)?;
        let mut configuration = configuration(&self.ports, options);
        if let Some(tls) = &options.tls {
            for (name, pem) in
                [("ca.pem", &tls.authority), ("cert.pem", &tls.certificate), ("key.pem", &tls.key)]
            {
                fs::write(self.dir.join(name), pem)?;
            }
            configuration.push_str(&tls_configuration(
                self.ports.tls,
                &self.inner,
                tls.asks_for_certificates,
            ));
        }
        fs::write(self.dir.join("rabbitmq.conf"), configuration)?;
        Ok(())
    }

    /// `sh supervisor.sh` for this node, in a process group of its own: a terminal's Ctrl-C goes to the owner alone.
    pub(super) fn supervisor(&self, script: &str) -> Result<Command> {
        let path = self.dir.join("supervisor.sh");
        fs::write(&path, script)?;
        let mut command = Command::new("sh");
        command
            .process_group(0)
            .arg(&path)
            .arg(&self.dir)
            .arg(self.rabbitmq.scripts.join("rabbitmq-server"))
            .args(self.enter())
            .envs(&self.environment);
        Ok(command)
    }

    pub(super) fn rabbitmqctl(&self) -> Command {
        let tool = self.rabbitmq.scripts.join("rabbitmqctl");
        let mut words = self.enter();
        words.push(tool.to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(&self.environment);
        command
    }

    /// The words before a command that run it in the node's root.
    fn enter(&self) -> Vec<String> {
        let Some(root) = &self.rabbitmq.root else {
            return Vec::new();
        };
        let mut words: Vec<String> =
            ["unshare", "--mount", "sh", "-c", ENTER_ROOT].map(str::to_owned).to_vec();
        words.push(root.to_string_lossy().into_owned());
        words
    }

    /// As other nodes know it.
    pub(super) fn name(&self) -> String {
        node_name(&self.ports)
    }

    /// The end of the node's log, for error messages.
    pub(super) fn log_tail(&self) -> String {
        process::last_lines(&self.dir.join("node.log"), 25)
    }
}

fn directory(rabbitmq: &RabbitMq, options: &BrokerOptions) -> Result<PathBuf> {
    if let Some(dir) = &options.directory {
        if rabbitmq.root.is_some() {
            bail!("a node in a chroot keeps its directory there: leave BrokerOptions::directory out");
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // The node changes its working directory.
        return Ok(dir.canonicalize()?);
    }
    let parent = match &rabbitmq.root {
        Some(root) => root.join("tmp"),
        None => std::env::temp_dir(),
    };
    let dir = tempfile::Builder::new()
        .prefix("millrace-broker-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot create a directory in {}", parent.display()))?;
    Ok(dir.keep())
}

fn environment(dir: &Path, ports: &Ports, options: &BrokerOptions) -> BTreeMap<&'static str, String> {
    let inside = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let mut variables = BTreeMap::from([
        ("HOME", inside("home")),
        // A node killed while it starts would leave it in the working directory.
        ("ERL_CRASH_DUMP", inside("erl_crash.dump")),
        ("ERL_EPMD_PORT", ports.epmd.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODENAME", node_name(ports)),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", ports.amqp.to_string()),
        ("RABBITMQ_DIST_PORT", ports.distribution.to_string()),
        ("RABBITMQ_CTL_DIST_PORT_MIN", ports.tools.start().to_string()),
        ("RABBITMQ_CTL_DIST_PORT_MAX", ports.tools.end().to_string()),
        ("RABBITMQ_MNESIA_BASE", inside("data")),
        ("RABBITMQ_LOG_BASE", inside("log")),
        ("RABBITMQ_LOGS", "-".into()),
        ("RABBITMQ_CONFIG_FILE", inside("rabbitmq.conf")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", inside("advanced.config")),
        ("RABBITMQ_CONFIG_FILES", inside("conf.d/*.conf")),
        ("RABBITMQ_CONF_ENV_FILE", inside("env.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", inside("plugins")),
        ("RABBITMQ_PID_FILE", inside("rabbitmq.pid")),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", options.erl_args.clone().unwrap_or_default()),
        // Makes the start script *become* the Erlang VM instead of waiting for it: one pid to signal.
        ("RUNNING_UNDER_SYSTEMD", "true".into()),
    ]);
    if options.root.is_some() {
        // This machine's search path means nothing in there.
        variables.insert("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    variables
}

fn node_name(ports: &Ports) -> String {
    format!("millrace{}@localhost", ports.amqp)
}

/// Our settings, then the caller's lines; a setting of ours that the caller gives too is left out, since a key given
/// twice (or in two forms, like `vm_memory_high_watermark.*`) is refused by some versions.
fn configuration(ports: &Ports, options: &BrokerOptions) -> String {
    let mut lines: Vec<String> = [
        // The default follows the machine's memory: every private node would take 40 % of it.
        "vm_memory_high_watermark.absolute = 1GiB",
        "disk_free_limit.absolute = 50MB",
        // The default is 512 MiB of memory for each node.
        "raft.wal_max_size_bytes = 64000000",
    ]
    .into_iter()
    .filter(|ours| !options.config.iter().any(|line| section(line) == section(ours)))
    .map(str::to_owned)
    .collect();
    for (plugin, key, port) in [
        ("rabbitmq_management", "management", ports.management),
        ("rabbitmq_prometheus", "prometheus", ports.prometheus),
    ] {
        if options.plugins.iter().any(|name| name == plugin) {
            lines.push(format!("{key}.tcp.ip = 127.0.0.1"));
            lines.push(format!("{key}.tcp.port = {port}"));
        }
    }
    if let Some(cluster) = &options.cluster {
        lines.push("cluster_formation.peer_discovery_backend = classic_config".to_owned());
        lines.push(format!("cluster_formation.classic_config.nodes.1 = {}", cluster.node));
    }
    lines.extend(options.config.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}

/// `dir` is the node's, as it sees it.
fn tls_configuration(port: u16, dir: &Path, asks_for_certificates: bool) -> String {
    let dir = dir.display();
    format!(
        "listeners.ssl.local = 127.0.0.1:{port}\nssl_options.cacertfile = {dir}/ca.pem\nssl_options.certfile = {dir}/cert.pem\n\
         ssl_options.keyfile = {dir}/key.pem\nssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = {asks_for_certificates}\n"
    )
}

fn section(line: &str) -> &str {
    line.split(['.', '=', ' ']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_settings_replace_ours() {
        let ports = Ports::pick(None).unwrap();
        let options = BrokerOptions {
            plugins: vec!["rabbitmq_management".into()],
            config: vec!["vm_memory_high_watermark.relative = 0.1".into()],
            ..BrokerOptions::default()
        };
        let text = configuration(&ports, &options);
        assert_eq!(text.matches("vm_memory_high_watermark").count(), 1, "{text}");
        assert!(text.contains(&format!("management.tcp.port = {}\n", ports.management)));
        assert!(!text.contains("prometheus"), "{text}");
    }
}
