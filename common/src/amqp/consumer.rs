//! Consuming: subscriptions on one supervised connection, each on its own channel, and the tickets that settle deliveries.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::Acker;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connection::{AsyncSession, Connector, Generation, Link, LinkState, supervise};
use super::properties::Properties;
use super::topology::Topology;
use crate::lifecycle::Lifecycle;

/// A queue to consume from.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Queue name.
    pub queue: Arc<str>,
    /// Unacknowledged deliveries the broker may have with this consumer at a time.
    pub prefetch: u16,
}

/// A message received.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from.
    pub queue: Arc<str>,
    /// The key it was published with.
    pub routing_key: String,
    /// Whether the broker delivered it before, to anyone.
    pub is_redelivered: bool,
    /// Properties and headers, untrusted.
    pub properties: Properties,
    /// Body, untrusted.
    pub body: Bytes,
    /// Settles it.
    pub ticket: Ticket,
}

/// The duty to settle one delivery. Dropping it settles nothing: the broker delivers the message again later.
#[derive(Debug)]
#[must_use = "a delivery that is not settled comes again when the connection ends"]
pub struct Ticket {
    acker: Acker,
    generation: Generation,
}

/// The delivery's connection or channel is gone: the broker will deliver the message again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "delivery of connection generation {generation} can no longer be settled; the broker delivers it again"
)]
pub struct Stale {
    /// The generation that received it.
    pub generation: Generation,
}

impl Ticket {
    /// The message is done with; something else holds the duty to answer now.
    ///
    /// # Errors
    /// [`Stale`] when it can only be delivered again.
    pub async fn ack(self) -> Result<(), Stale> {
        let acked = self.acker.ack(BasicAckOptions::default()).await;
        self.settled(acked)
    }

    /// As [`Ticket::ack`], but returns when the acknowledgement is queued for writing, not when it is written.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn ack_soon(self) -> Result<(), Stale> {
        // The client library queues the frame at the first poll; the rest of the future only waits for the socket.
        match self.acker.ack(BasicAckOptions::default()).now_or_never() {
            Some(result) => self.settled(result),
            None => Ok(()),
        }
    }

    /// The message was not attempted: back to the queue for anyone.
    ///
    /// # Errors
    /// [`Stale`], as [`Ticket::ack`].
    pub async fn nack(self) -> Result<(), Stale> {
        let options = BasicNackOptions { multiple: false, requeue: true };
        let nacked = self.acker.nack(options).await;
        self.settled(nacked)
    }

    fn settled(&self, result: lapin::Result<bool>) -> Result<(), Stale> {
        match result {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Stale { generation: self.generation }),
        }
    }
}

/// Takes deliveries. Called one at a time per subscription; while a call waits, that subscription pauses.
pub trait Accept: Send + Sync + 'static {
    /// Takes one delivery and sees to it that its ticket is used.
    fn accept(&self, delivery: Delivery) -> impl Future<Output = ()> + Send;
}

/// A supervised consuming connection.
#[derive(Debug)]
pub struct ConsumerGroup {
    stop_consuming: CancellationToken,
    lifecycle: Lifecycle,
    state: watch::Receiver<LinkState>,
}

impl ConsumerGroup {
    /// Connects in the background, declares `topology` and consumes, again after every loss of the connection.
    pub fn spawn<A: Accept>(
        connector: Connector,
        role: &'static str,
        topology: Topology,
        subscriptions: Vec<Subscription>,
        accept: Arc<A>,
    ) -> Self {
        let lifecycle = Lifecycle::new();
        let stop_consuming = CancellationToken::new();
        let (state_sender, state) = watch::channel(LinkState::Down(None));
        let session = Session {
            topology,
            subscriptions,
            accept,
            stop_consuming: stop_consuming.clone(),
            lifecycle: lifecycle.clone(),
        };
        lifecycle.spawn(supervise(connector, role, lifecycle.clone(), state_sender, session));
        Self { stop_consuming, lifecycle, state }
    }

    /// The connection's state, for waiting and for showing.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Cancels the consumers and gives deliveries not yet accepted back; tickets can still be used.
    pub fn stop_consuming(&self) {
        self.stop_consuming.cancel();
    }

    /// Closes the connection, at most `grace` from now. Deliveries not settled by then are delivered again.
    pub async fn close(&self, grace: Duration) {
        self.stop_consuming.cancel();
        self.lifecycle.stop();
        self.lifecycle.stopped(grace).await;
    }
}

struct Session<A> {
    topology: Topology,
    subscriptions: Vec<Subscription>,
    accept: Arc<A>,
    stop_consuming: CancellationToken,
    lifecycle: Lifecycle,
}

impl<A: Accept> AsyncSession for Session<A> {
    async fn run(&mut self, link: &Link) {
        if let Err(error) = self.topology.declare(&link.connection).await {
            warn!(%error, "cannot declare what this process consumes from");
            return;
        }
        let mut consumers = Vec::with_capacity(self.subscriptions.len());
        for subscription in &self.subscriptions {
            match self.subscribe(link, subscription).await {
                Ok(consumer) => consumers.push(consumer),
                Err(error) => {
                    warn!(queue = %subscription.queue, %error, "cannot consume; create the queue with `millrace topology apply`");
                    return;
                }
            }
        }
        link.announce_up();
        // A consumer that ends alone (its queue deleted, its channel closed by the broker) ends the session, so that
        // it comes back with all the others on a fresh connection instead of staying silently absent.
        let ended = CancellationToken::new();
        let (accept, stop, ended) = (&*self.accept, &self.stop_consuming, &ended);
        // Borrowed, not consumed: a channel closes when it is dropped, and with it go the deliveries whose tickets are
        // still out.
        let forwarding = consumers.iter_mut().map(|consumer| async move {
            consumer.forward(accept, stop, ended).await;
            if !stop.is_cancelled() {
                ended.cancel();
            }
        });
        join_all(forwarding).await;
        if self.stop_consuming.is_cancelled() {
            // Tickets are still out: the connection stays until the owner closes it.
            while link.connection.status().connected() && !self.lifecycle.is_stopping() {
                tokio::select! {
                    () = self.lifecycle.stopping() => {}
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        }
    }
}

impl<A: Accept> Session<A> {
    async fn subscribe(&self, link: &Link, subscription: &Subscription) -> lapin::Result<Forwarder> {
        let channel = link.connection.create_channel().await?;
        channel.basic_qos(subscription.prefetch, BasicQosOptions::default()).await?;
        let stream = channel
            .basic_consume(
                subscription.queue.as_ref().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(Forwarder { channel, stream, queue: Arc::clone(&subscription.queue), generation: link.generation })
    }
}

struct Forwarder {
    channel: lapin::Channel,
    stream: lapin::Consumer,
    queue: Arc<str>,
    generation: Generation,
}

impl Forwarder {
    async fn forward<A: Accept>(&mut self, accept: &A, stop: &CancellationToken, ended: &CancellationToken) {
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return self.give_back().await,
                () = ended.cancelled() => return,
                next = self.stream.next() => next,
            };
            match next {
                Some(Ok(delivery)) => {
                    let delivery = self.convert(delivery);
                    tokio::select! {
                        biased;
                        () = accept.accept(delivery) => {}
                        // Dropped unaccepted, its ticket unused: the session is over, it is delivered again.
                        () = ended.cancelled() => return,
                    }
                }
                Some(Err(error)) => {
                    warn!(queue = %self.queue, %error, "consumer failed");
                    return;
                }
                None => {
                    debug!(queue = %self.queue, "consumer ended");
                    return;
                }
            }
        }
    }

    /// Cancels the consumer, then returns what was delivered but not accepted.
    async fn give_back(&mut self) {
        let tag = self.stream.tag();
        if let Err(error) = self.channel.basic_cancel(tag, BasicCancelOptions::default()).await {
            debug!(queue = %self.queue, %error, "cannot cancel the consumer");
            return;
        }
        while let Some(Ok(delivery)) = self.stream.next().await {
            let ticket = self.convert(delivery).ticket;
            if ticket.nack().await.is_err() {
                return;
            }
        }
    }

    fn convert(&self, delivery: lapin::message::Delivery) -> Delivery {
        Delivery {
            queue: Arc::clone(&self.queue),
            routing_key: delivery.routing_key.as_str().to_owned(),
            is_redelivered: delivery.redelivered,
            properties: Properties::from_lapin(delivery.properties),
            body: delivery.data.into(),
            ticket: Ticket { acker: delivery.acker, generation: self.generation },
        }
    }
}
