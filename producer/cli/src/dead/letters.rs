//! Taking dead letters out of their queue, and putting back what is not done with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::consumer::{Accept, ConsumerGroup, Delivery, Subscription};
use millrace_common::amqp::inspect::queue_depth;
use millrace_common::amqp::message::{RequestMeta, header, now_ms};
use millrace_common::amqp::topology::Topology;
use millrace_producer::Config;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Chosen, Filter};
use crate::global::connector;
use crate::tally::thousands;

/// What was there a moment ago comes at once; after so long without a message the rest has gone elsewhere.
const SILENCE: Duration = Duration::from_secs(5);
/// How long acknowledgements may take to arrive.
const GRACE: Duration = Duration::from_secs(5);
/// Messages handed over at a time.
const HANDED_OVER: usize = 16;

/// A dead letter, as people read it.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    /// The request's id, where it has one.
    pub(super) id: Option<String>,
    /// Model and tier.
    pub(super) routing_key: String,
    /// Why it was kept.
    pub(super) reason: String,
    /// More about it.
    pub(super) detail: String,
    /// Which worker kept it.
    pub(super) worker: String,
    /// Seconds since it was published, as far as its requester says.
    pub(super) age_seconds: Option<u64>,
    /// Length of its body.
    pub(super) bytes: usize,
}

impl Facts {
    /// What to call it.
    pub(super) fn name(&self) -> &str {
        self.id.as_deref().unwrap_or("one without an id")
    }
}

/// A dead letter that this process has.
pub(super) struct Letter {
    pub(super) facts: Facts,
    pub(super) delivery: Delivery,
}

impl Letter {
    fn of(delivery: Delivery) -> Self {
        let properties = &delivery.properties;
        let text = |name| properties.text(name).ok().flatten().unwrap_or_default().to_owned();
        let published_ms = properties.count(header::PUBLISHED_MS).ok().flatten();
        let facts = Facts {
            id: RequestMeta::identity(properties).map(str::to_owned),
            routing_key: delivery.routing_key.clone(),
            reason: text(header::DEAD_REASON),
            detail: text(header::DEAD_DETAIL),
            worker: text(header::WORKER),
            age_seconds: published_ms.map(|then| now_ms().saturating_sub(then) / 1000),
            bytes: delivery.body.len(),
        };
        Self { facts, delivery }
    }

    fn is_meant(&self, filter: &Filter) -> bool {
        let model = self.facts.routing_key.split('.').next();
        filter.reason.as_deref().is_none_or(|reason| reason == self.facts.reason)
            && filter.model.as_deref().is_none_or(|wanted| Some(wanted) == model)
    }

    fn is_chosen(&self, chosen: &Chosen) -> bool {
        chosen.all || self.facts.id.as_ref().is_some_and(|id| chosen.ids.contains(id))
    }
}

/// Dead letters that this process has, until it is closed.
pub(super) struct Letters {
    group: Option<ConsumerGroup>,
    /// Those that are meant.
    pub(super) meant: Vec<Letter>,
    others: Vec<Letter>,
    /// How many the queue had.
    pub(super) all: usize,
}

struct HandOver(mpsc::Sender<Delivery>);

impl Accept for HandOver {
    async fn accept(&self, delivery: Delivery) {
        // Without a receiver nobody wants more: it goes back with the connection.
        let _ = self.0.send(delivery).await;
    }
}

impl Letters {
    /// Takes the oldest ones out of the queue, and those that are meant among them.
    pub(super) async fn take(config: &Config, filter: &Filter) -> Result<Self> {
        let connector = connector(config)?;
        let queue = config.topology.names().dead();
        let Some(depth) = queue_depth(&connector, &queue).await? else {
            bail!(
                "there is no queue {queue}: check topology.prefix and the virtual host, or run `millrace topology apply`"
            );
        };
        let expected = usize::try_from(depth.messages)?.min(filter.limit.into());
        let mut letters =
            Self { group: None, meant: Vec::new(), others: Vec::new(), all: depth.messages as usize };
        if expected > 0 {
            letters.fetch(connector, queue, expected).await?;
        }
        let taken = std::mem::take(&mut letters.meant);
        (letters.meant, letters.others) = taken.into_iter().partition(|letter| letter.is_meant(filter));
        if letters.all > usize::from(filter.limit) {
            eprintln!(
                "looked through the oldest {} of {}: see --limit",
                filter.limit,
                thousands(letters.all as u64)
            );
        }
        Ok(letters)
    }

    async fn fetch(&mut self, connector: Connector, queue: String, expected: usize) -> Result<()> {
        let (hand_over, mut incoming) = mpsc::channel(HANDED_OVER);
        let subscription = Subscription::fixed(queue, u16::try_from(expected)?);
        let accept = Arc::new(HandOver(hand_over));
        let topology = Topology::default();
        self.group =
            Some(ConsumerGroup::spawn(connector, "dead letters", topology, vec![subscription], accept));
        while self.meant.len() < expected {
            match tokio::time::timeout(SILENCE, incoming.recv()).await {
                Ok(Some(delivery)) => self.add(Letter::of(delivery)),
                // Somebody else has them now.
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// After a new connection all come again, and the tickets of the first copies are worth nothing.
    fn add(&mut self, letter: Letter) {
        if self.meant.first().is_some_and(|known| known.delivery.ticket.is_stale()) {
            self.meant.clear();
        }
        self.meant.push(letter);
    }

    /// Leaves those that are chosen; says which ids are not there.
    pub(super) fn choose(&mut self, chosen: &Chosen) {
        let (wanted, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.meant).into_iter().partition(|letter| letter.is_chosen(chosen));
        (self.meant, _) = (wanted, self.others.extend(others));
        let is_there = |id: &&String| self.meant.iter().any(|letter| letter.facts.id.as_ref() == Some(*id));
        for id in chosen.ids.iter().filter(|id| !is_there(id)) {
            eprintln!("{id}: not among the {} looked through", self.meant.len() + self.others.len());
        }
    }

    /// Puts back what is left, and closes the connection.
    pub(super) async fn close(self) {
        let Some(group) = self.group else { return };
        for letter in self.meant.into_iter().chain(self.others) {
            // Else it goes back with the connection.
            let _ = letter.delivery.ticket.nack();
        }
        group.close(GRACE).await;
    }
}
