//! Whether the workers have heard it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use millrace_common::amqp::connection::wait_up;
use millrace_common::directory::Directory;
use millrace_common::fleet::{ANNOUNCE_EVERY, Fleet, WorkerStatus};
use millrace_producer::Config;
use tokio::time::Instant;

use crate::global::connector;

/// Within this every worker has announced itself, and what it knows.
const WITHIN: Duration = Duration::from_secs(4);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Listens to the workers.
pub(super) struct Workers {
    directory: Directory,
}

/// How many have heard, of how many whom it concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) have: usize,
    pub(super) of: usize,
}

impl Workers {
    pub(super) async fn listen(config: &Config) -> Result<Self> {
        let directory = Directory::listen(connector(config)?, &config.topology);
        match wait_up(&mut directory.state(), WITHIN).await {
            Ok(()) => Ok(Self { directory }),
            Err(Some(error)) => Err(error).context("cannot listen to the workers"),
            Err(None) => bail!("cannot listen to the workers: no answer within {WITHIN:?}"),
        }
    }

    /// Waits until every worker has announced itself since, and what `is_done` wants of it.
    pub(super) async fn wait(&self, is_done: impl Fn(&Fleet) -> bool) -> Fleet {
        let started = Instant::now();
        // Those that have not announced themselves yet.
        tokio::time::sleep(ANNOUNCE_EVERY + ANNOUNCE_EVERY / 5).await;
        loop {
            let fleet = self.directory.fleet();
            if is_done(&fleet) || started.elapsed() > WITHIN {
                return fleet;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(super) async fn close(&self) {
        self.directory.close().await;
    }
}

/// Who has heard that a switch of this name has this value, or none.
pub(super) fn heard(fleet: &Fleet, model: Option<&str>, name: &str, value: Option<&str>) -> Heard {
    let concerned = fleet.workers().filter(|worker| concerns(worker, model));
    concerned.fold(Heard::default(), |heard, worker| {
        let has = worker.switches.get(name).map(String::as_str) == value;
        Heard { have: heard.have + usize::from(has), of: heard.of + 1 }
    })
}

fn concerns(worker: &WorkerStatus, model: Option<&str>) -> bool {
    worker.is_ready && model.is_none_or(|model| worker.models.iter().any(|served| served.name == model))
}

impl Heard {
    pub(super) fn is_all(self) -> bool {
        self.have == self.of
    }
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.have, self.of)
    }
}
