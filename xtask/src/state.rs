//! What `up` left running, for `down`: `target/up/state.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};
use millrace_harness::broker::DetachedBroker;
use millrace_harness::process::ProcessId;
use serde::{Deserialize, Serialize};

use crate::workspace;

#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) broker: DetachedBroker,
    pub(crate) workers: Vec<ProcessId>,
}

impl State {
    pub(crate) fn load() -> Result<Option<Self>> {
        let path = path()?;
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{} is damaged; remove it", path.display()))
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = path()?;
        fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn remove() -> Result<()> {
        let path = path()?;
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.broker.is_running() || self.workers.iter().any(|worker| worker.is_running())
    }
}

/// Logs of broker and workers, and the state file.
pub(crate) fn directory() -> Result<PathBuf> {
    let directory = workspace::target()?.join("up");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

fn path() -> Result<PathBuf> {
    Ok(directory()?.join("state.json"))
}
