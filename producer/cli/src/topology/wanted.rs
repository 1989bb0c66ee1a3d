//! What should be on the broker.

use std::collections::BTreeSet;

use anyhow::Result;
use millrace_common::amqp::inspect::missing;
use millrace_common::amqp::topology::Topology;
use millrace_common::directory::Directory;
use millrace_common::fleet::ANNOUNCE_EVERY;
use millrace_common::tier::check_name;
use millrace_producer::Config;

use super::Models;
use crate::exit::usage;
use crate::global::connector;

/// The models meant: those named, else those that workers serve.
pub(super) async fn models(config: &Config, models: &Models) -> Result<BTreeSet<String>> {
    if models.models.is_empty() {
        return served(config).await;
    }
    for model in &models.models {
        check_name(model).map_err(|error| usage(format!("--models: {error}")))?;
    }
    Ok(models.models.iter().cloned().collect())
}

/// Everything that should be there for these models.
pub(crate) fn topology(config: &Config, models: &BTreeSet<String>) -> Topology {
    let mut topology = Topology::shared(&config.topology);
    for model in models {
        topology.extend(Topology::model(&config.topology, model));
    }
    topology
}

/// These exchanges, alone.
pub(crate) fn only_exchanges(config: &Config, names: &[String]) -> Topology {
    let mut exchanges = Topology::shared(&config.topology).exchanges;
    exchanges.retain(|exchange| names.contains(&exchange.name));
    Topology { exchanges, ..Topology::default() }
}

/// Listens for a second and a half. Nothing is declared but a queue of our own.
async fn served(config: &Config) -> Result<BTreeSet<String>> {
    let connector = connector(config)?;
    let status = config.topology.names().status_exchange();
    // A listener binds to the status exchange: without it there is no fleet either.
    if !missing(&connector, &only_exchanges(config, &[status])).await?.is_empty() {
        return Ok(BTreeSet::new());
    }
    let directory = Directory::listen(connector, &config.topology);
    tokio::time::sleep(ANNOUNCE_EVERY.mul_f32(1.5)).await;
    let fleet = directory.fleet();
    directory.close().await;
    Ok(fleet.workers().flat_map(|worker| &worker.models).map(|model| model.name.clone()).collect())
}
