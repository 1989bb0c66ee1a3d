//! Publishing: confirmed, mandatory, bounded, overlapping. The only place that publishes.
//!
//! One task per channel starts the publishes in order and does not await each: the client library then gathers their
//! frames into few writes (awaiting one by one measured 2.6 times slower, 2026-11). Confirms are awaited in a set.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::connection::{AsyncSession, Connector, Link, LinkState, supervise};
use super::properties::Properties;
use crate::lifecycle::Lifecycle;

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Message {
    /// Target exchange.
    pub exchange: Arc<str>,
    /// Routing key, at most 255 bytes.
    pub routing_key: String,
    /// Properties and headers. Returned messages are matched by `message_id`: set it, different for each.
    pub properties: Properties,
    /// Body.
    pub body: Bytes,
    /// Whether the broker must return the message when no queue takes it.
    pub mandatory: bool,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has taken responsibility.
    Confirmed,
    /// The broker refused it (a full queue with `reject-publish`). It is nowhere.
    Refused,
    /// No queue is bound for its key. It is nowhere.
    Unroutable,
    /// The connection ended, or no confirm came in time, after it may have been sent. It may be in a queue or not.
    Unknown(String),
    /// It was not sent: the publisher is stopping, or the message cannot be sent at all.
    NotSent(String),
}

/// Bounds of a publisher.
#[derive(Clone, Copy, Debug)]
pub struct PublisherOptions {
    /// Messages whose confirm is awaited, at most. A cumulative confirm scans them all, so hundreds, not thousands.
    pub max_in_flight: usize,
    /// Bytes of bodies waiting or in flight, at most; a larger body goes alone.
    pub max_in_flight_bytes: usize,
    /// How long a confirm may take.
    pub confirm_timeout: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self { max_in_flight: 512, max_in_flight_bytes: 64 << 20, confirm_timeout: Duration::from_secs(30) }
    }
}

/// Bodies are accounted in pieces of this many bytes, since semaphores count to `u32` only.
const BUDGET_UNIT: usize = 1024;

struct Outgoing {
    message: Message,
    outcome: oneshot::Sender<Outcome>,
    _budget: OwnedSemaphorePermit,
}

/// A handle to a publishing connection. Cheap to clone; clones share its bounds.
#[derive(Clone, Debug)]
pub struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    options: PublisherOptions,
    state: watch::Receiver<LinkState>,
}

/// A message handed to the publisher; awaiting it tells what became of it.
#[derive(Debug)]
pub struct Receipt {
    outcome: oneshot::Receiver<Outcome>,
    timeout: Duration,
}

impl Receipt {
    /// Waits for the broker's answer. Cancel safe, but a message whose receipt is dropped may still be sent.
    pub async fn outcome(self) -> Outcome {
        match tokio::time::timeout(self.timeout, self.outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Outcome::Unknown("the publisher ended".to_owned()),
            Err(_) => Outcome::Unknown(format!("no confirm within {:?}", self.timeout)),
        }
    }
}

impl Publisher {
    /// Opens a supervised connection of its own, in the background, and publishes over it until `lifecycle` stops.
    pub fn spawn(
        connector: Connector,
        role: &'static str,
        options: PublisherOptions,
        lifecycle: &Lifecycle,
    ) -> Self {
        let (queue, incoming) = mpsc::channel(options.max_in_flight);
        let (state_sender, state) = watch::channel(LinkState::Down(None));
        let session =
            Session { incoming, max_in_flight: options.max_in_flight, lifecycle: lifecycle.clone() };
        lifecycle.spawn(supervise(connector, role, lifecycle.clone(), state_sender, session));
        let budget_units =
            u32::try_from(options.max_in_flight_bytes / BUDGET_UNIT).unwrap_or(u32::MAX).max(1);
        Self { queue, budget: Arc::new(Semaphore::new(budget_units as usize)), budget_units, options, state }
    }

    /// The connection's state, for waiting and for showing.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Hands a message over; waits only while the bounds are reached. Messages of one caller keep their order.
    ///
    /// While there is no connection messages wait; the receipt's timeout bounds that.
    pub async fn enqueue(&self, message: Message) -> Receipt {
        let (sender, outcome) = oneshot::channel();
        let receipt = Receipt { outcome, timeout: self.options.confirm_timeout };
        let units =
            u32::try_from(message.body.len() / BUDGET_UNIT + 1).unwrap_or(u32::MAX).min(self.budget_units);
        let budget =
            Arc::clone(&self.budget).acquire_many_owned(units).await.expect("the budget is never closed");
        let outgoing = Outgoing { message, outcome: sender, _budget: budget };
        if let Err(mpsc::error::SendError(outgoing)) = self.queue.send(outgoing).await {
            let _ = outgoing.outcome.send(Outcome::NotSent("the publisher is stopping".to_owned()));
        }
        receipt
    }

    /// Publishes and waits for the broker's answer.
    pub async fn publish(&self, message: Message) -> Outcome {
        self.enqueue(message).await.outcome().await
    }
}

struct Session {
    incoming: mpsc::Receiver<Outgoing>,
    max_in_flight: usize,
    lifecycle: Lifecycle,
}

struct Published {
    message_id: Option<String>,
    outcome: oneshot::Sender<Outcome>,
    result: lapin::Result<Confirmation>,
    _budget: OwnedSemaphorePermit,
}

impl AsyncSession for Session {
    async fn run(&mut self, link: &Link) {
        match confirm_channel(link).await {
            Ok(channel) => {
                link.announce_up();
                self.publish_all(link, Arc::new(channel)).await;
            }
            Err(error) => warn!(%error, "cannot open a publishing channel"),
        }
    }
}

async fn confirm_channel(link: &Link) -> lapin::Result<Channel> {
    let channel = link.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

impl Session {
    async fn publish_all(&mut self, link: &Link, channel: Arc<Channel>) {
        enum Event {
            Send(Option<Outgoing>),
            Answered(Published),
            Stop,
        }
        let mut in_flight: FuturesUnordered<BoxFuture<'static, Published>> = FuturesUnordered::new();
        let mut is_stopping = false;
        while link.connection.status().connected() && channel.status().connected() {
            let event = tokio::select! {
                biased;
                Some(published) = in_flight.next() => Event::Answered(published),
                outgoing = self.incoming.recv(), if in_flight.len() < self.max_in_flight => Event::Send(outgoing),
                () = self.lifecycle.stopping(), if !is_stopping => Event::Stop,
            };
            match event {
                Event::Send(Some(outgoing)) => in_flight.push(start(Arc::clone(&channel), outgoing)),
                Event::Answered(published) => {
                    let mut answered = vec![published];
                    while let Some(Some(published)) = futures_util::FutureExt::now_or_never(in_flight.next())
                    {
                        answered.push(published);
                    }
                    resolve(answered);
                }
                // A stop lets what was handed over finish; the owner stops its publisher last.
                Event::Stop => {
                    is_stopping = true;
                    self.incoming.close();
                }
                Event::Send(None) if in_flight.is_empty() => return,
                Event::Send(None) => {
                    while let Some(published) = in_flight.next().await {
                        resolve(vec![published]);
                    }
                    return;
                }
            }
        }
        // The connection is gone: every pending confirm fails now.
        while let Some(published) = in_flight.next().await {
            resolve(vec![published]);
        }
    }
}

/// Starts a publish; its frames are queued at the future's first poll, which the set does in order.
fn start(channel: Arc<Channel>, outgoing: Outgoing) -> BoxFuture<'static, Published> {
    let Outgoing { message, outcome, _budget } = outgoing;
    Box::pin(async move {
        let message_id = message.properties.message_id().map(str::to_owned);
        let result = async {
            let confirm = channel
                .basic_publish(
                    ShortString::from(&*message.exchange),
                    ShortString::try_new(message.routing_key).unwrap_or_default(),
                    BasicPublishOptions { mandatory: message.mandatory, immediate: false },
                    &message.body,
                    message.properties.into_lapin(),
                )
                .await?;
            confirm.await
        }
        .await;
        Published { message_id, outcome, result, _budget }
    })
}

/// Tells the callers.
///
/// The client library hands a returned message to whichever confirm comes next, so the returns of a batch of answers
/// are collected first and matched by `message_id`. A return always precedes its own confirm, hence it is in the batch.
fn resolve(answered: Vec<Published>) {
    let mut returned = HashSet::new();
    for published in &answered {
        if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = &published.result
            && let Some(id) = message.properties.message_id()
        {
            returned.insert(id.as_str().to_owned());
        }
    }
    for published in answered {
        let is_returned = published.message_id.is_some_and(|id| returned.contains(&id));
        let outcome = match published.result {
            _ if is_returned => Outcome::Unroutable,
            Ok(Confirmation::Ack(_)) => Outcome::Confirmed,
            Ok(Confirmation::Nack(_)) => Outcome::Refused,
            Ok(Confirmation::NotRequested) => {
                Outcome::Unknown("the channel is not in confirm mode".to_owned())
            }
            Err(error) => Outcome::Unknown(error.to_string()),
        };
        if published.outcome.send(outcome).is_err() {
            debug!("nobody waits for this confirm any more");
        }
    }
}
