//! `millrace dead redrive`

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures_util::{StreamExt, stream};
use millrace_common::amqp::message::header;
use millrace_common::amqp::publisher::{Message, Outcome, Publisher, PublisherOptions};
use millrace_common::lifecycle::Lifecycle;

use super::letters::{Letter, Letters};
use super::{Chosen, Filter};
use crate::exit::Exit;
use crate::global::{Global, connector};
use crate::tally::thousands;

/// Publishes under way at a time.
const OVERLAPPING: usize = 64;
/// How long the last confirms may take.
const GRACE: Duration = Duration::from_secs(5);
/// Why a request may have been kept that is fit to be sent again. Any other was never answered because it was hostile, and would pass for
/// the operator's now.
const FIT: [&str; 3] = [POISON, "delivery_limit", "reply_refused"];
/// Not sent again among others: it ends the processes that run it.
const POISON: &str = "poison";
/// What belongs to the first life of a request: why it ended, and how long its requester would wait.
const FORMER: [&str; 8] = [
    header::DEAD_REASON,
    header::DEAD_DETAIL,
    header::WORKER,
    header::PUBLISHED_MS,
    header::BUDGET_MS,
    header::REDELIVERIES,
    header::DELIVERY_COUNT,
    header::VERSION_HOPS,
];

/// Send requests that could not be answered again, as new ones
///
/// Each gets a new id, and the old one in `x-redrive-of`, its tier's default time, and goes to the queue it was in. Its answer goes
/// where its first requester wanted it; a library client that has given it up drops it. The dead copy is removed once the broker
/// has the new one: a request whose redrive is interrupted in between may run twice. What was kept because it is hostile stays, and
/// poison unless it is asked for by id or with --reason poison.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    filter: Filter,
}

const AFTER_HELP: &str = "\
Examples:
  millrace dead redrive 0199d0f2-7b5e-7cc0-8000-5a1c7e0d2b11
  millrace dead redrive --all --reason reply_refused --model digits

Exit codes: 0, 1 none of them is there, or not all could be sent, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let config = global.load()?;
    let mut letters = Letters::take(&config, &arguments.filter).await?;
    letters.choose(&arguments.chosen);
    let exchange: Arc<str> = config.topology.names().request_exchange().into();
    let publishing = Lifecycle::new();
    let publisher =
        Publisher::spawn(connector(&config)?, "redrive", PublisherOptions::default(), &publishing);
    let meant = letters.meant.len();
    let is_asked_for = arguments.filter.reason.as_deref() == Some(POISON) || !arguments.chosen.all;
    let is_fit = |reason: &str| FIT.contains(&reason) && (reason != POISON || is_asked_for);
    let (fit, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut letters.meant).into_iter().partition(|letter| is_fit(&letter.facts.reason));
    for Letter { facts, .. } in &others {
        eprintln!("{}: stays, kept as {}", facts.name(), facts.reason);
    }
    letters.meant = others;
    let sending = stream::iter(fit).map(|letter| {
        let (publisher, message) = (&publisher, message(&letter, &exchange));
        async move { (letter, publisher.publish(message).await) }
    });
    let mut sent = sending.buffer_unordered(OVERLAPPING);
    let mut redriven = 0;
    while let Some((letter, outcome)) = sent.next().await {
        match why_not(&outcome) {
            None => redriven += usize::from(letter.delivery.ticket.ack().is_ok()),
            Some(reason) => {
                eprintln!("{}: stays, {reason}", letter.facts.name());
                letters.meant.push(letter);
            }
        }
    }
    drop(sent);
    eprintln!("sent {} of {} again", thousands(redriven as u64), thousands(meant as u64));
    letters.close().await;
    publishing.stop();
    publishing.stopped(GRACE).await;
    Ok(if meant > 0 && redriven == meant { Exit::Success } else { Exit::Failed })
}

fn message(letter: &Letter, exchange: &Arc<str>) -> Message {
    let properties = letter.delivery.properties.for_republishing().without(&FORMER);
    let id = uuid::Uuid::now_v7().to_string();
    let properties = match &letter.facts.id {
        Some(former) => properties.with_text(header::REDRIVE_OF, former),
        None => properties,
    };
    Message {
        exchange: Arc::clone(exchange),
        routing_key: letter.delivery.routing_key.clone(),
        properties: properties.with_message_id(&id),
        body: letter.delivery.body.clone(),
        mandatory: true,
    }
}

fn why_not(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Confirmed => None,
        Outcome::Refused => Some("its queue is full: try again later".to_owned()),
        Outcome::Unroutable => Some("nobody serves its model and tier: start a worker that does".to_owned()),
        Outcome::Forbidden(forbidden) => Some(format!("the broker forbids it: {}", forbidden.reason())),
        Outcome::NotSent(reason) => Some(format!("not sent: {reason}")),
        Outcome::Unknown(reason) => Some(format!("it may have been sent: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::amqp::properties::Properties;

    use super::*;

    #[test]
    fn what_belongs_to_the_first_life_is_left_out() {
        let before = FORMER.iter().fold(Properties::new(), |properties, name| properties.with_count(name, 1));
        let after = before.with_text(header::TENANT, "ann").without(&FORMER);
        assert!(FORMER.iter().all(|name| !after.has_header(name)));
        assert_eq!(after.text(header::TENANT), Ok(Some("ann")));
    }
}
