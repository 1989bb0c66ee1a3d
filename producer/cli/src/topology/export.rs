//! `millrace topology export`

use anyhow::Result;
use clap::Args;
use millrace_common::amqp::topology::Topology;
use millrace_producer::Config;
use serde_json::{Value, json};

use super::apply::policy_json;
use super::users::{self, Roles, User};
use super::{Models, wanted};
use crate::exit::Exit;
use crate::global::Global;
use crate::output;

/// Print RabbitMQ definitions (JSON) of what should be on the broker
///
/// For `rabbitmqctl import_definitions FILE`, or `load_definitions` in rabbitmq.conf. With --models no broker is needed.
/// Passwords of users are hashed.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    models: Models,

    #[command(flatten)]
    roles: Roles,
}

const AFTER_HELP: &str = "\
Examples:
  millrace topology export --models digits > definitions.json
  rabbitmqctl import_definitions definitions.json

An import removes nothing. Where a tier's `shards` change, `millrace topology apply` takes the former routes away as well.

Exit codes: 0, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let models = wanted::models(&config, &arguments.models).await?;
    if models.is_empty() {
        eprintln!("no worker is alive and --models names none: only what all models share is exported");
    }
    let users = users::wanted(&config, &arguments.roles)?;
    let definitions = definitions(&config, &wanted::topology(&config, &models), &users);
    output::print(&serde_json::to_string_pretty(&definitions)?)?;
    Ok(Exit::Success)
}

fn definitions(config: &Config, topology: &Topology, users: &[User]) -> Value {
    let vhost = config.broker.addresses[0].vhost();
    let in_vhost = |mut value: Value, more: Value| {
        value["vhost"] = vhost.into();
        if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
            value.extend(more);
        }
        value
    };
    let binding = |from: &str, to: &str, kind: &str, key: &str| {
        json!({"source": from, "vhost": vhost, "destination": to, "destination_type": kind, "routing_key": key,
               "arguments": {}})
    };
    let of_queues =
        topology.bindings.iter().map(|it| binding(&it.exchange, &it.queue, "queue", &it.routing_key));
    let of_exchanges =
        topology.exchange_bindings.iter().map(|it| binding(&it.from, &it.to, "exchange", &it.routing_key));
    let mut definitions = json!({
        "vhosts": [{ "name": vhost }],
        "exchanges": topology.exchanges.iter()
            .map(|it| json!({"name": it.name, "vhost": vhost, "type": it.kind, "durable": true, "auto_delete": false,
                             "internal": false, "arguments": it.arguments}))
            .collect::<Vec<_>>(),
        "queues": topology.queues.iter()
            .map(|it| json!({"name": it.name, "vhost": vhost, "durable": true, "auto_delete": false,
                             "arguments": it.arguments}))
            .collect::<Vec<_>>(),
        "bindings": of_queues.chain(of_exchanges).collect::<Vec<_>>(),
        "policies": topology.policies.iter()
            .map(|it| in_vhost(policy_json(it), json!({ "name": it.name })))
            .collect::<Vec<_>>(),
    });
    if !users.is_empty() {
        let name = |user: &User| json!({ "user": user.name });
        definitions["users"] = users.iter().map(User::hashed_account).collect();
        definitions["permissions"] =
            users.iter().map(|user| in_vhost(user.permissions(), name(user))).collect();
        definitions["topic_permissions"] = users
            .iter()
            .flat_map(|user| user.topics().map(|topic| in_vhost(topic, name(user))).collect::<Vec<_>>())
            .collect();
    }
    definitions
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn definitions_hold_every_object_in_the_virtual_host() {
        let mut config = Config::load(None).unwrap();
        config.topology.tiers[0].shards = 2;
        let topology = wanted::topology(&config, &BTreeSet::from(["digits".to_owned()]));
        let users = users::all(&config, &[]).unwrap();
        let definitions = definitions(&config, &topology, &users);
        for (kind, count) in [
            ("exchanges", topology.exchanges.len()),
            ("queues", topology.queues.len()),
            ("bindings", topology.bindings.len() + 1),
            ("policies", topology.policies.len()),
            ("permissions", 3),
            ("topic_permissions", 6),
        ] {
            let entries = definitions[kind].as_array().unwrap();
            assert_eq!(entries.len(), count, "{kind}");
            assert!(entries.iter().all(|entry| entry["vhost"] == "/"), "{kind}");
        }
        let through = json!({"source": "millrace.request", "vhost": "/", "destination": "millrace.shard.digits.premium",
            "destination_type": "exchange", "routing_key": "digits.premium", "arguments": {}});
        assert!(definitions["bindings"].as_array().unwrap().contains(&through));
        let sharding = &definitions["exchanges"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&sharding["type"], &sharding["arguments"]["hash-header"]),
            (&json!("x-consistent-hash"), &json!("x-tenant"))
        );
        assert_eq!(definitions["users"].as_array().unwrap().len(), 3);
    }
}
