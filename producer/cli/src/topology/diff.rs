//! `millrace topology diff`

use std::collections::BTreeSet;
use std::fmt;

use anyhow::Result;
use clap::Args;
use millrace_common::amqp::topology::{Arguments as Entries, Topology};
use serde_json::{Map, Value};

use super::live::{Live, LiveBinding};
use super::{Models, wanted};
use crate::exit::Exit;
use crate::global::Global;
use crate::management::{Management, Place};
use crate::output;

/// Compare what is on the broker with what should be
///
/// Prints one line a difference: `+` is missing on the broker, `-` is there and should not be, `~` is there and differs
/// (wanted after the arrow). Reply queues and what listens to statuses and cancellations come and go with their users and are left out.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    models: Models,

    #[command(flatten)]
    place: Place,
}

const AFTER_HELP: &str = "\
Without --models the queues of every model found on the broker or in the fleet are compared; with it, those of other models \
count as `-`.

What to do about `+` and about policies: `millrace topology apply`. A queue or exchange that differs cannot change while it \
exists: drain it, delete it, apply. Delete what is marked `-` when nothing uses it any more.

A tier that gets other `shards`: first the clients' configuration (the header does no harm), then apply, then restart the workers at \
once, all with the same number and `declare = false`; two numbers at a time, or a worker of a release without shards, route some \
requests twice or not at all until the next apply. Shards have their part of the limits: what waits in the first may be above its \
own for a while, and is refused until then. Apply changes the routes and leaves the queues. Fewer than before: those marked `-` get no more \
requests; keep a worker of the former configuration until they are empty (its number of messages is shown), then delete them. \
What nobody takes from there is answered `deadline_exceeded` when its time is over.

Examples:
  millrace topology diff
  millrace topology diff --models digits --management-url http://broker:15672

Exit codes: 0 equal, 1 different or no management API, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let management = Management::new(&config, &arguments.place)?;
    let prefix = config.topology.prefix.clone();
    let live = management.run(move |management| Live::read(management, &prefix)).await?;
    let mut models = wanted::models(&config, &arguments.models).await?;
    if arguments.models.models.is_empty() {
        models.extend(live.models(&config.topology.prefix).map(str::to_owned));
    }
    let differences = differences(&wanted::topology(&config, &models), &live);
    if differences.is_empty() {
        let names: Vec<&str> = models.iter().map(String::as_str).collect();
        eprintln!(
            "no differences; models: {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        );
        return Ok(Exit::Success);
    }
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    output::print(&lines.join("\n"))?;
    Ok(Exit::Failed)
}

/// One difference between broker and configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Not on the broker.
    Missing(String),
    /// On the broker only.
    Extra(String),
    /// On both, not equal.
    Changed {
        /// Kind and name of the object, and what of it.
        what: String,
        /// On the broker.
        live: String,
        /// Wanted.
        wanted: String,
    },
}

impl Difference {
    /// Whether it is about a policy: those can change at any time.
    pub(crate) fn is_policy(&self) -> bool {
        let (Self::Missing(what) | Self::Extra(what) | Self::Changed { what, .. }) = self;
        what.starts_with("policy ")
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "+ {what}"),
            Self::Extra(what) => write!(f, "- {what}"),
            Self::Changed { what, live, wanted } => write!(f, "~ {what}: {live} -> {wanted}"),
        }
    }
}

/// Compares; in the order exchanges, queues, bindings, policies.
pub(crate) fn differences(wanted: &Topology, live: &Live) -> Vec<Difference> {
    let mut found = Vec::new();
    exchanges(wanted, live, &mut found);
    queues(wanted, live, &mut found);
    bindings(wanted, live, &mut found);
    policies(wanted, live, &mut found);
    found
}

fn exchanges(wanted: &Topology, live: &Live, found: &mut Vec<Difference>) {
    for exchange in &wanted.exchanges {
        let what = format!("exchange {}", exchange.name);
        match live.exchanges.iter().find(|live| live.name == exchange.name) {
            None => found.push(Difference::Missing(what)),
            Some(live) => {
                let kind = serde_json::to_value(exchange.kind).unwrap_or_default();
                changed(found, format!("{what} type"), &Value::from(live.kind.as_str()), &kind);
                changed(found, format!("{what} durable"), &live.durable.into(), &true.into());
                entries(found, &what, &live.arguments, &exchange.arguments);
            }
        }
    }
    let names: BTreeSet<&str> = wanted.exchanges.iter().map(|exchange| exchange.name.as_str()).collect();
    let extra = live.exchanges.iter().filter(|live| !names.contains(live.name.as_str()));
    found.extend(extra.map(|live| Difference::Extra(format!("exchange {}", live.name))));
}

fn queues(wanted: &Topology, live: &Live, found: &mut Vec<Difference>) {
    for queue in &wanted.queues {
        let what = format!("queue {}", queue.name);
        match live.queues.iter().find(|live| live.name == queue.name) {
            None => found.push(Difference::Missing(what)),
            Some(live) => {
                changed(found, format!("{what} durable"), &live.durable.into(), &true.into());
                entries(found, &what, &live.arguments, &queue.arguments);
            }
        }
    }
    let names: BTreeSet<&str> = wanted.queues.iter().map(|queue| queue.name.as_str()).collect();
    let extra = live.queues.iter().filter(|live| !names.contains(live.name.as_str()));
    found.extend(extra.map(|live| {
        let holds = match live.messages {
            0 => String::new(),
            messages => format!(" ({messages} messages)"),
        };
        Difference::Extra(format!("queue {}{holds}", live.name))
    }));
}

fn bindings(wanted: &Topology, live: &Live, found: &mut Vec<Difference>) {
    let binding = |from: &str, to: &str, key: &str| LiveBinding {
        source: from.to_owned(),
        destination: to.to_owned(),
        routing_key: key.to_owned(),
    };
    let of_queues = wanted.bindings.iter().map(|it| binding(&it.exchange, &it.queue, &it.routing_key));
    let of_exchanges = wanted.exchange_bindings.iter().map(|it| binding(&it.from, &it.to, &it.routing_key));
    let wanted: Vec<LiveBinding> = of_queues.chain(of_exchanges).collect();
    let text = |binding: &LiveBinding| {
        let key = if binding.routing_key.is_empty() { "" } else { &format!(" by {}", binding.routing_key) };
        format!("binding {} -> {}{key}", binding.source, binding.destination)
    };
    let missing = wanted.iter().filter(|binding| !live.bindings.contains(binding));
    found.extend(missing.map(|binding| Difference::Missing(text(binding))));
    let extra = live.bindings.iter().filter(|binding| !wanted.contains(binding));
    found.extend(extra.map(|binding| Difference::Extra(text(binding))));
}

fn policies(wanted: &Topology, live: &Live, found: &mut Vec<Difference>) {
    for policy in &wanted.policies {
        let what = format!("policy {}", policy.name);
        match live.policies.iter().find(|live| live.name == policy.name) {
            None => found.push(Difference::Missing(what)),
            Some(live) => {
                let mut compare = |name: &str, live: Value, wanted: Value| {
                    changed(found, format!("{what} {name}"), &live, &wanted);
                };
                compare("pattern", live.pattern.as_str().into(), policy.pattern.as_str().into());
                compare("priority", live.priority.into(), policy.priority.into());
                compare("apply-to", live.apply_to.as_str().into(), "queues".into());
                entries(found, &what, &live.definition, &policy.definition);
            }
        }
    }
    let names: BTreeSet<&str> = wanted.policies.iter().map(|policy| policy.name.as_str()).collect();
    let extra = live.policies.iter().filter(|live| !names.contains(live.name.as_str()));
    found.extend(extra.map(|live| Difference::Extra(format!("policy {}", live.name))));
}

fn entries(found: &mut Vec<Difference>, what: &str, live: &Map<String, Value>, wanted: &Entries) {
    let Ok(Value::Object(wanted)) = serde_json::to_value(wanted) else { return };
    let names: BTreeSet<&String> = live.keys().chain(wanted.keys()).collect();
    for name in names {
        let value = |entries: &Map<String, Value>| entries.get(name).cloned().unwrap_or(Value::Null);
        changed(found, format!("{what} {name}"), &value(live), &value(&wanted));
    }
}

fn changed(found: &mut Vec<Difference>, what: String, live: &Value, wanted: &Value) {
    if live != wanted {
        let text = |value: &Value| match value {
            Value::Null => "absent".to_owned(),
            value => value.to_string(),
        };
        found.push(Difference::Changed { what, live: text(live), wanted: text(wanted) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::live::tests::live;
    use millrace_producer::Config;

    fn wanted() -> Topology {
        wanted::topology(&Config::load(None).unwrap(), &BTreeSet::from(["digits".to_owned()]))
    }

    fn lines(live: &Live) -> Vec<String> {
        differences(&wanted(), live).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_broker_as_wanted_has_no_differences() {
        assert_eq!(lines(&live(&wanted())), [""; 0]);
    }

    #[test]
    fn every_kind_of_difference_is_a_line() {
        let mut broker = live(&wanted());
        broker.exchanges.remove(0);
        broker.queues[0].arguments.insert("x-overflow".into(), "drop-head".into());
        broker.queues[0].arguments.insert("x-odd".into(), 1.into());
        broker.queues.retain(|queue| queue.name != "millrace.request.digits.free");
        broker.bindings[0].routing_key = "stray".into();
        broker.policies[0].definition.insert("max-length".into(), 7.into());
        broker.policies.pop();
        assert_eq!(
            lines(&broker),
            [
                "+ exchange millrace.request",
                "~ queue millrace.retry.50 x-odd: 1 -> absent",
                "~ queue millrace.retry.50 x-overflow: \"drop-head\" -> \"reject-publish\"",
                "+ queue millrace.request.digits.free",
                "+ binding millrace.retry.50 -> millrace.retry.50",
                "- binding millrace.retry.50 -> millrace.retry.50 by stray",
                "~ policy millrace.request.premium max-length: 7 -> 100000",
                "+ policy millrace.solo",
            ]
        );
    }

    #[test]
    fn what_other_shards_leave_is_shown_with_what_it_holds() {
        let mut config = Config::load(None).unwrap();
        let models = BTreeSet::from(["digits".to_owned()]);
        config.topology.tiers[2].shards = 2;
        let sharded = wanted::topology(&config, &models);
        let mut broker = live(&sharded);
        assert!(differences(&sharded, &broker).is_empty());
        let second = broker.queues.iter_mut().find(|queue| queue.name.ends_with(".free.1"));
        second.unwrap().messages = 3;
        let own = |line: &String| line.contains("digits");
        assert_eq!(
            lines(&broker).into_iter().filter(own).collect::<Vec<_>>(),
            [
                "- exchange millrace.shard.digits.free",
                "- queue millrace.request.digits.free.1 (3 messages)",
                "+ binding millrace.request -> millrace.request.digits.free by digits.free",
                "- binding millrace.shard.digits.free -> millrace.request.digits.free by 1",
                "- binding millrace.shard.digits.free -> millrace.request.digits.free.1 by 1",
                "- binding millrace.request -> millrace.shard.digits.free by digits.free",
            ]
        );
    }

    #[test]
    fn objects_of_no_wanted_model_are_extra() {
        let mut more = wanted();
        more.extend(Topology::model(&Config::load(None).unwrap().topology, "old"));
        let found = lines(&live(&more));
        assert!(found.contains(&"- queue millrace.request.old.free".to_owned()), "{found:?}");
        // Three tiers and the suspects: four queues, and two bindings for each tier.
        assert_eq!(found.len(), 4 + 6, "{found:?}");
    }
}
