//! The Docker engine, through its own command.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What `docker inspect` says of a container.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    pub(super) id: String,
    name: String,
    pub(super) state: State,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: String,
    pub(super) exit_code: i32,
    health: Option<Health>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: String,
}

impl Container {
    /// Running, and its health check agrees.
    pub(super) fn is_healthy(&self) -> bool {
        self.state.status == "running" && self.state.health.as_ref().is_some_and(|h| h.status == "healthy")
    }

    pub(super) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }
}

/// Whether an engine answers; the error says what to do.
pub(super) fn check() -> Result<()> {
    docker(&["version", "--format", "{{.Server.Version}}"])
        .map(drop)
        .context("no Docker engine answers; install docker.io and docker-compose, start the daemon, and be in its group")
}

/// The containers with these labels, as `inspect` shows them.
pub(super) fn containers(labels: &[String]) -> Result<Vec<Container>> {
    let mut list = vec!["ps", "--all", "--quiet", "--no-trunc"];
    list.extend(labels.iter().flat_map(|label| ["--filter", label]));
    let ids = docker(&list)?;
    if ids.trim().is_empty() {
        return Ok(Vec::new());
    }
    let inspect: Vec<&str> = ["inspect"].into_iter().chain(ids.split_whitespace()).collect();
    Ok(serde_json::from_str(&docker(&inspect)?)?)
}

/// What a container printed, on both outputs.
pub(super) fn logs(container: &str) -> Result<String> {
    let output = Command::new("docker").args(["logs", "--tail", "40", container]).output()?;
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(stderr + &stdout)
}

/// Runs `docker`; returns what it printed.
pub(super) fn docker(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("docker");
    command.args(arguments);
    quiet(&mut command)
}

/// Runs a command whose output only a failure shows.
pub(super) fn quiet(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(
        output.status.success(),
        "{shown} failed ({}):\n{}\n{}",
        output.status,
        end(&stdout),
        end(&stderr)
    );
    Ok(stdout)
}

fn end(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
