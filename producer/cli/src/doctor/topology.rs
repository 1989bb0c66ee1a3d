//! What should be on the broker: topology, policies, and nothing in the dead-letter queue.

use std::collections::BTreeSet;

use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::inspect::{missing, queue_depth};
use millrace_producer::Config;

use super::report::Report;
use crate::exit::text;
use crate::management::Management;
use crate::topology::{Difference, Live, differences, wanted_topology};

const APPLY: &str = "run `millrace topology apply`";
/// Differences printed.
const EXAMPLES: usize = 5;

/// Compares with the management API where it answers; else over AMQP, which can only tell what is missing.
pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    connector: &Connector,
    management: &Management,
    models: &BTreeSet<String>,
) {
    let prefix = config.topology.prefix.clone();
    match management.run(move |management| Live::read(management, &prefix)).await {
        Ok(live) => compare(report, config, &live, models),
        Err(error) => {
            exists(report, config, connector, models).await;
            report.warn("policies", "not checked", &text(&error));
        }
    }
    dead(report, config, connector).await;
}

fn compare(report: &mut Report, config: &Config, live: &Live, models: &BTreeSet<String>) {
    let mut models = models.clone();
    models.extend(live.models(&config.topology.prefix).map(str::to_owned));
    let found = differences(&wanted_topology(config, &models), live);
    let (policies, objects): (Vec<Difference>, Vec<Difference>) =
        found.into_iter().partition(Difference::is_policy);
    if objects.is_empty() {
        report.good("topology", "exchanges, queues and bindings are as they should be");
    } else {
        report.bad(
            "topology",
            &some(&objects),
            &format!("{APPLY}; `millrace topology diff --help` says more"),
        );
    }
    if policies.is_empty() {
        report.good("policies", "are as they should be");
    } else {
        report.warn(
            "policies",
            &some(&policies),
            &format!("without them queues grow without a limit: {APPLY}"),
        );
    }
}

fn some(differences: &[Difference]) -> String {
    let mut lines: Vec<String> = differences.iter().take(EXAMPLES).map(ToString::to_string).collect();
    if let Some(more) = differences.len().checked_sub(EXAMPLES).filter(|&more| more > 0) {
        lines.push(format!("and {more} more"));
    }
    lines.join("; ")
}

async fn exists(report: &mut Report, config: &Config, connector: &Connector, models: &BTreeSet<String>) {
    match missing(connector, &wanted_topology(config, models)).await {
        Ok(missing) if missing.is_empty() => report.good("topology", "exchanges and queues are there"),
        Ok(missing) => {
            report.bad("topology", &format!("{} missing", missing.join(", ")), APPLY);
        }
        Err(error) => report.warn("topology", "not checked", &error.to_string()),
    }
}

async fn dead(report: &mut Report, config: &Config, connector: &Connector) {
    let queue = config.topology.names().dead();
    match queue_depth(connector, &queue).await {
        Ok(Some(depth)) if depth.messages > 0 => report.warn(
            "dead letters",
            &format!("{} messages in {queue}", depth.messages),
            "requests that could not be answered; `millrace dead list` says why",
        ),
        Ok(Some(_)) => report.good("dead letters", "none"),
        // Reported as topology, or this user has no business with it.
        Ok(None) | Err(_) => {}
    }
}
