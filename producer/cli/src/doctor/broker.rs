//! The broker itself: is it there, how old is it, what may this user do.

use std::time::{Duration, Instant};

use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::greeting::greeting;
use millrace_common::amqp::inspect::missing;
use millrace_common::amqp::message::header;
use millrace_common::amqp::properties::Properties;
use millrace_common::amqp::publisher::{Forbidden, Message, Outcome, Publisher, PublisherOptions};
use millrace_common::amqp::topology::{Names, Topology, apply};
use millrace_common::lifecycle::Lifecycle;
use millrace_producer::{Client, Config};
use serde::Deserialize;

use super::report::Report;
use crate::exit::text;
use crate::global::reach;
use crate::management::Management;
use crate::topology::only_exchanges;

const PATIENCE: Duration = Duration::from_secs(5);
/// The oldest broker that the integration tests run on.
const OLDEST: (u32, u32) = (3, 10);

/// Whether any address answers and lets this user in; each one is tried.
pub(super) async fn is_reached(report: &mut Report, config: &Config) -> bool {
    let mut does_answer = false;
    for address in &config.broker.addresses {
        let mut broker = config.broker.clone();
        broker.addresses = vec![address.clone()];
        let tried = match Connector::new(&broker, "millrace doctor") {
            Ok(connector) => {
                missing(&connector, &Topology::default()).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match tried {
            Ok(_) => {
                does_answer = true;
                report.good("broker", &format!("{address} answers"));
            }
            Err(error) => report.bad(
                "broker",
                &error,
                "set MILLRACE_AMQP_URL or broker.addresses to amqp://USER:PASSWORD@HOST:PORT/VHOST of a running RabbitMQ; \
                 `cargo xtask up` starts one here",
            ),
        }
    }
    does_answer
}

#[derive(Deserialize)]
struct Overview {
    rabbitmq_version: String,
}

/// By the greeting; where that is encrypted, by the management API.
pub(super) async fn version(report: &mut Report, config: &Config, management: &Management) {
    let addresses = config.broker.addresses.clone();
    let greet = move || addresses.iter().find_map(|address| greeting(address, PATIENCE).ok().flatten());
    let greeted = tokio::task::spawn_blocking(greet).await.ok().flatten();
    let version = match greeted {
        Some(greeting) => Some(format!("{} {}", greeting.product, greeting.version)),
        None => management
            .run(|management| management.get::<Overview>("overview"))
            .await
            .ok()
            .map(|overview| format!("RabbitMQ {}", overview.rabbitmq_version)),
    };
    match version {
        None => report.warn(
            "version",
            "not known: the connection is encrypted and the management API does not answer",
            "make sure that the broker is RabbitMQ 3.10 or later",
        ),
        Some(version) if is_old(&version) => {
            report.bad("version", &version, "update the broker: Millrace needs RabbitMQ 3.10 or later");
        }
        Some(version) => report.good("version", &version),
    }
}

/// A version that cannot be read counts as new: a broker of another make is no reason to stop.
fn is_old(version: &str) -> bool {
    let numbers = version.rsplit(' ').next().unwrap_or_default();
    let mut numbers = numbers.split('.').map_while(|number| number.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < OLDEST)
}

/// Whether this user may have queues of its own: declare, bind, consume.
pub(super) async fn may_listen(report: &mut Report, config: &Config, connector: &Connector) -> bool {
    let status = config.topology.names().status_exchange();
    match missing(connector, &only_exchanges(config, std::slice::from_ref(&status))).await {
        Ok(missing) if missing.is_empty() => {}
        Ok(_) => {
            report.bad(
                "fleet",
                &format!("the exchange {status} is not there: no worker has ever run with this prefix and virtual host"),
                "start a worker, or run `millrace topology apply`; check topology.prefix and the virtual host",
            );
            return false;
        }
        Err(error) => {
            report.bad(
                "permissions",
                &error.to_string(),
                "let an operator run `millrace topology apply --users`",
            );
            return false;
        }
    }
    let queue = format!("{status}.doctor-{}", uuid::Uuid::now_v7().simple());
    match apply(connector, &Topology::status_listener(&config.topology, &queue)).await {
        Ok(()) => {
            report.good("permissions", "this user may declare, bind and consume queues of its own");
            true
        }
        Err(error) => {
            report.bad(
                "permissions",
                &error.to_string(),
                "give the user configure, write and read on its own queues: `millrace topology apply --users` shows how",
            );
            false
        }
    }
}

/// Whether this user may publish requests, by one that no queue takes.
pub(super) async fn may_publish(report: &mut Report, config: &Config, connector: &Connector) {
    let names = config.topology.names();
    let nobody = format!("doctor-{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
    let message = Message {
        exchange: names.request_exchange().into(),
        routing_key: Names::request_key(&nobody, &config.requests.tier),
        properties: Properties::persistent().with_message_id(&nobody),
        body: bytes::Bytes::new(),
        mandatory: true,
    };
    match publish(connector, message).await {
        Outcome::Unroutable => {
            report.good("publishing", &format!("this user may publish to {}", names.request_exchange()))
        }
        Outcome::Confirmed => report.warn(
            "publishing",
            &format!(
                "{} routes even a model that nobody serves: a queue is bound to it by a wildcard",
                names.request_exchange()
            ),
            "`millrace topology diff` shows the binding",
        ),
        Outcome::Refused => {
            report.warn("publishing", "a queue bound by a wildcard is full", "see `millrace topology diff`")
        }
        Outcome::Forbidden(forbidden) => {
            report.bad("publishing", forbidden.reason(), publish_fix(forbidden.reason()));
        }
        Outcome::Unknown(reason) | Outcome::NotSent(reason) => {
            report.bad("publishing", &reason, publish_fix(&reason));
        }
    }
}

/// A reply's way: from the exchange to this process's own reply queue and out of it.
pub(super) async fn round_trip(report: &mut Report, config: &Config) {
    let what = "replies";
    let mut config = config.clone();
    // To look is not to repair.
    config.topology.declare = false;
    if let Err(error) = reach(&config).await {
        return report.bad(what, &text(&error), "the lines above may tell");
    }
    let (client, mut orphans) =
        match Client::builder(config.clone()).name("millrace doctor").connect_with_orphans().await {
            Ok(connected) => connected,
            Err(error) => {
                let fix = "the lines above may tell; -v shows what the broker said";
                return report.bad(what, &format!("no reply queue: {error}"), fix);
            }
        };
    let id = uuid::Uuid::now_v7().to_string();
    let message = Message {
        exchange: client.names().reply_exchange().into(),
        routing_key: client.reply_key().to_owned(),
        properties: Properties::persistent().with_message_id(&id).with_text(header::STATUS, "ok"),
        body: bytes::Bytes::from_static(b"{}"),
        mandatory: true,
    };
    let started = Instant::now();
    let outcome = match Connector::new(&config.broker, "millrace doctor") {
        Ok(connector) => publish(&connector, message).await,
        Err(error) => Outcome::NotSent(error.to_string()),
    };
    match outcome {
        Outcome::Confirmed => {
            match tokio::time::timeout(PATIENCE, orphans.recv()).await {
                Ok(Some(orphan)) if orphan.request_id == id => {
                    orphan.reply.receipt.acknowledge();
                    let ms = started.elapsed().as_millis();
                    report.good(what, &format!("a reply comes back through a queue of this process ({ms} ms, connecting included)"));
                }
                _ => report.bad(
                    what,
                    "a reply was published and did not come back",
                    "look into the broker's log",
                ),
            }
        }
        Outcome::Forbidden(Forbidden::Access(reason)) | Outcome::Unknown(reason) | Outcome::NotSent(reason)
            if reason.contains("ACCESS") => report.warn(
            what,
            "this process has a reply queue; its way was not tried, for this user may not publish replies",
            "that is right for a producer",
        ),
        Outcome::Unroutable | Outcome::Refused | Outcome::Forbidden(_) => {
            report.bad(
                what,
                "the reply queue does not take replies",
                "look at the queue in the management UI",
            );
        }
        Outcome::Unknown(reason) | Outcome::NotSent(reason) => {
            report.bad(what, &reason, publish_fix(&reason))
        }
    }
    client.close().await;
    client.delete_reply_queue().await;
}

async fn publish(connector: &Connector, message: Message) -> Outcome {
    let lifecycle = Lifecycle::new();
    let options = PublisherOptions { confirm_timeout: PATIENCE, ..PublisherOptions::default() };
    let publisher = Publisher::spawn(connector.clone(), "probe", options, &lifecycle);
    let outcome = publisher.publish(message).await;
    lifecycle.stop();
    lifecycle.stopped(PATIENCE).await;
    outcome
}

fn publish_fix(reason: &str) -> &'static str {
    if reason.contains("ACCESS") {
        "give the user write and topic permission on the request exchange: `millrace topology apply --users` shows how"
    } else if reason.contains("NOT_FOUND") || reason.contains("NOT-FOUND") {
        "run `millrace topology apply`, or start a worker"
    } else if reason.contains("no confirm") {
        "the broker takes no messages: a memory or disk alarm? `rabbitmq-diagnostics alarms` tells"
    } else {
        "look into the broker's log"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_told_from_new_ones() {
        for (version, old) in [
            ("RabbitMQ 3.9.29", true),
            ("RabbitMQ 3.10.8", false),
            ("RabbitMQ 4.3.6", false),
            ("RabbitMQ 2.8.7", true),
            ("RabbitMQ dev", false),
        ] {
            assert_eq!(is_old(version), old, "{version}");
        }
    }
}
