//! `millrace topology apply`

use anyhow::Result;
use clap::Args;
use millrace_common::amqp::topology::{Policy, apply};
use serde_json::json;

use super::users::{self, Roles, User};
use super::{Models, wanted};
use crate::exit::Exit;
use crate::global::{Global, connector};
use crate::management::{Management, ManagementError, Place};
use crate::output;

/// Create what is missing, and set the policies
///
/// Exchanges, queues and bindings are declared over AMQP; existing ones are left as they are, but for the routes of another
/// number of a tier's shards, which are taken away. Policies (limits that may change
/// while queues live) and users go through RabbitMQ's management API. Applying twice changes nothing.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    models: Models,

    #[command(flatten)]
    place: Place,

    /// Leave policies alone, for a broker without the management API
    #[arg(long, conflicts_with = "users")]
    no_policies: bool,

    #[command(flatten)]
    roles: Roles,
}

const AFTER_HELP: &str = "\
Examples:
  millrace topology apply
  millrace topology apply --models digits,sentiment
  MILLRACE_USER_WORKER_PASSWORD=... millrace topology apply --users
  MILLRACE_USER_PRODUCER_TRIAL_PASSWORD=... millrace topology apply --users --producer trial=free

A queue's arguments cannot change while it exists: `millrace topology diff` shows such differences. Drain the queue, delete \
it and apply again.

Exit codes: 0 applied, 1 something was refused or policies were skipped, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let management = Management::new(&config, &arguments.place)?;
    let models = wanted::models(&config, &arguments.models).await?;
    if models.is_empty() {
        eprintln!("no worker is alive and --models names none: only what all models share is created");
    }
    let topology = wanted::topology(&config, &models);
    apply(&connector(&config)?, &topology).await?;
    output::print(&format!(
        "{} exchanges, {} queues, {} bindings are there{}",
        topology.exchanges.len(),
        topology.queues.len(),
        topology.bindings.len() + topology.exchange_bindings.len(),
        if models.is_empty() { String::new() } else { format!("; models: {}", join(&models)) },
    ))?;
    if arguments.no_policies {
        return Ok(Exit::Success);
    }
    let users = users::wanted(&config, &arguments.roles)?;
    let policies = topology.policies;
    let count = policies.len();
    let names: Vec<String> = users.iter().map(|user| user.name.clone()).collect();
    let base = management.base().to_owned();
    match management.run(move |management| set(management, &policies, &users)).await {
        Ok(()) => {}
        Err(error) if matches!(error.downcast_ref(), Some(ManagementError::Unreachable { .. })) => {
            eprintln!(
                "policies were skipped: {error:#}. --no-policies leaves them alone without this message"
            );
            return Ok(Exit::Failed);
        }
        Err(error) => return Err(error),
    }
    output::print(&format!("{count} policies are set, by {base}"))?;
    if !names.is_empty() {
        output::print(&format!(
            "users are set: {}. They may not create exchanges or tier queues: set topology.declare = false where they are used",
            names.join(", ")
        ))?;
    }
    Ok(Exit::Success)
}

fn join<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn set(management: &Management, policies: &[Policy], users: &[User]) -> Result<()> {
    for policy in policies {
        management.put("policies", &policy.name, &policy_json(policy))?;
    }
    for user in users {
        management.put_user(&user.name, &user.account())?;
        management.put("permissions", &user.name, &user.permissions())?;
        for topic in user.topics() {
            management.put("topic-permissions", &user.name, &topic)?;
        }
    }
    Ok(())
}

/// A policy as the management API takes it.
pub(super) fn policy_json(policy: &Policy) -> serde_json::Value {
    json!({
        "pattern": policy.pattern,
        "definition": policy.definition,
        "priority": policy.priority,
        "apply-to": "queues",
    })
}
