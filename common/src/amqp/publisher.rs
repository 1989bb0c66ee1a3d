//! Publishing: confirmed, mandatory, bounded, overlapping. The only place that publishes.
//!
//! One task per channel starts the publishes in order and does not await each: the client library then gathers their
//! frames into few writes (awaiting one by one measured 2.6 times slower, 2026-11). Confirms are awaited in a set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use super::connection::{AsyncSession, Connector, End, Link, LinkState, supervise};
use super::properties::Properties;
use super::returns::{Gathered, Returns};
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
    /// The broker's rules do not allow it (permissions, its longest message). It is nowhere, and never will be.
    Forbidden(Forbidden),
    /// The connection ended, or no confirm came in time, after it may have been sent. It may be in a queue or not.
    Unknown(String),
    /// It was not sent: the publisher is stopping, or the message cannot be sent at all.
    NotSent(String),
}

/// Which rule of the broker forbids a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// The user may not publish with this exchange or key. The broker's text.
    Access(String),
    /// Longer than the broker takes. The broker's text.
    Size(String),
}

impl Forbidden {
    /// The broker's text.
    pub fn reason(&self) -> &str {
        match self {
            Self::Access(reason) | Self::Size(reason) => reason,
        }
    }

    /// Reads it from a channel's end, which tells nobody's message id: all that was in flight ended with the channel, and
    /// only the text, where it names the key or the size, tells whose fault it was.
    fn read(error: &str, exchange: &str, routing_key: &str, bytes: usize) -> Option<Self> {
        let names = |what: &str| error.contains(what);
        let is_refused =
            || names(&format!("to exchange '{exchange}'")) || names(&format!("topic '{routing_key}'"));
        if names("ACCESS_REFUSED") && is_refused() {
            return Some(Self::Access(error.to_owned()));
        }
        (names("PRECONDITION_FAILED") && names(&format!("message size {bytes} ")))
            .then(|| Self::Size(error.to_owned()))
    }
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

/// How often an idle publisher looks whether its connection still stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Messages handed over and not yet sent, at most: those that wait longer wait for their room.
const HANDED_OVER: usize = 128;
/// Bodies are accounted in pieces of this many bytes, since semaphores count to `u32` only.
const BUDGET_UNIT: usize = 1024;

#[derive(Debug)]
struct Outgoing {
    message: Message,
    outcome: oneshot::Sender<Outcome>,
    /// Held until the broker has answered.
    budget: OwnedSemaphorePermit,
}

/// A handle to a publishing connection. Cheap to clone; clones share its bounds.
#[derive(Clone, Debug)]
pub struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    options: PublisherOptions,
    state: watch::Receiver<LinkState>,
    is_blocked: Arc<AtomicBool>,
}

/// Room for one message.
#[derive(Debug)]
pub struct Room<'a> {
    place: Option<mpsc::Permit<'a, Outgoing>>,
    budget: OwnedSemaphorePermit,
    timeout: Duration,
}

impl Room<'_> {
    /// Hands a message over. Those of one caller keep their order.
    pub fn publish(self, message: Message) -> Receipt {
        let (sender, outcome) = oneshot::channel();
        match self.place {
            Some(place) => place.send(Outgoing { message, outcome: sender, budget: self.budget }),
            None => drop(sender.send(Outcome::NotSent("the publisher is stopping".to_owned()))),
        }
        Receipt { outcome, timeout: self.timeout }
    }
}

/// A message handed to the publisher; awaiting it tells what became of it.
#[derive(Debug)]
pub struct Receipt {
    outcome: oneshot::Receiver<Outcome>,
    timeout: Duration,
}

impl Receipt {
    /// Waits for the broker's answer. A message whose receipt is dropped before it was sent is not sent any more.
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
        let (queue, incoming) = mpsc::channel(options.max_in_flight.min(HANDED_OVER));
        let (state_sender, state) = watch::channel(LinkState::Down(None));
        let PublisherOptions { max_in_flight, confirm_timeout, .. } = options;
        let is_blocked = Arc::new(AtomicBool::new(false));
        let (told, lifecycle_of) = (Arc::clone(&is_blocked), lifecycle.clone());
        let session =
            Session { incoming, max_in_flight, confirm_timeout, lifecycle: lifecycle_of, is_blocked: told };
        lifecycle.spawn(supervise(connector, role, lifecycle.clone(), state_sender, session));
        let budget_units =
            u32::try_from(options.max_in_flight_bytes / BUDGET_UNIT).unwrap_or(u32::MAX).max(1);
        let budget = Arc::new(Semaphore::new(budget_units as usize));
        Self { queue, budget, budget_units, options, state, is_blocked }
    }

    /// Whether the broker has said that it takes nothing, being out of memory or disk. Known within a second or two.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// The connection's state, for waiting and for showing.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Waits for room for a body of so many bytes: for long only while the bounds are reached. What a message says of time is best
    /// written after it.
    pub async fn room(&self, bytes: usize) -> Room<'_> {
        let units = u32::try_from(bytes / BUDGET_UNIT + 1).unwrap_or(u32::MAX).min(self.budget_units);
        let budget =
            Arc::clone(&self.budget).acquire_many_owned(units).await.expect("the budget is never closed");
        // Without a place the publisher is stopping.
        Room { place: self.queue.reserve().await.ok(), budget, timeout: self.options.confirm_timeout }
    }

    /// Publishes and waits for the broker's answer. While there is no connection messages wait; `confirm_timeout` bounds that.
    pub async fn publish(&self, message: Message) -> Outcome {
        self.room(message.body.len()).await.publish(message).outcome().await
    }
}

struct Session {
    incoming: mpsc::Receiver<Outgoing>,
    max_in_flight: usize,
    confirm_timeout: Duration,
    lifecycle: Lifecycle,
    is_blocked: Arc<AtomicBool>,
}

/// A publish that has an end. Its share of the budget has been given back.
struct Published {
    message_id: Option<String>,
    outcome: oneshot::Sender<Outcome>,
    result: Result<Confirmation, Outcome>,
}

impl AsyncSession for Session {
    async fn run(&mut self, link: &Link) -> End {
        match link.set_up(confirm_channel(link)).await {
            Ok(Ok(channel)) => {
                link.announce_up();
                self.publish_all(link, Arc::new(channel)).await
            }
            Ok(Err(error)) => End::Unusable(format!("cannot open a publishing channel: {error}")),
            Err(end) => end,
        }
    }
}

async fn confirm_channel(link: &Link) -> lapin::Result<Channel> {
    let channel = link.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

impl Session {
    async fn publish_all(&mut self, link: &Link, channel: Arc<Channel>) -> End {
        enum Event {
            Send(Option<Outgoing>),
            Answered(Published),
            Stop,
            Look,
        }
        let mut in_flight: FuturesUnordered<BoxFuture<'static, Published>> = FuturesUnordered::new();
        let mut answers = Answers::default();
        let (mut is_stopping, mut is_over) = (false, false);
        let mut last_answer = Instant::now();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !is_over && link.connection.status().connected() && channel.status().connected() {
            let is_blocked = link.connection.status().blocked();
            if self.is_blocked.swap(is_blocked, Ordering::Relaxed) != is_blocked {
                warn!(is_blocked, "the broker is out of memory or disk, or no longer");
            }
            let has_room = in_flight.len() < self.max_in_flight;
            let event = tokio::select! {
                biased;
                Some(published) = in_flight.next() => Event::Answered(published),
                // A blocked connection takes messages and sends none: they would pile up in the library, and their copies too.
                outgoing = self.incoming.recv(), if has_room && !is_blocked => Event::Send(outgoing),
                () = self.lifecycle.stopping(), if !is_stopping => Event::Stop,
                _ = looks.tick() => Event::Look,
            };
            match event {
                // Nobody waits any more: the caller has given up, or has handed over another copy meanwhile.
                Event::Send(Some(outgoing)) if outgoing.outcome.is_closed() => {}
                Event::Send(Some(outgoing)) => {
                    if in_flight.is_empty() {
                        last_answer = Instant::now();
                    }
                    in_flight.push(start(Arc::clone(&channel), outgoing));
                }
                Event::Answered(published) => {
                    last_answer = Instant::now();
                    answers.take(published, &mut in_flight);
                }
                // A stop lets what was handed over finish; the owner stops its publisher last.
                Event::Stop => {
                    is_stopping = true;
                    self.incoming.close();
                }
                Event::Send(None) => is_over = true,
                Event::Look if is_stopping && is_blocked => {
                    while let Ok(outgoing) = self.incoming.try_recv() {
                        say(outgoing.outcome, Outcome::NotSent("the broker takes nothing".to_owned()));
                    }
                    return End::Over;
                }
                // Confirms that never come, as of quorum queues without their majority, have taken every place.
                Event::Look if !in_flight.is_empty() && last_answer.elapsed() > self.confirm_timeout * 2 => {
                    return End::Unusable(format!("no confirm came for {:?}", last_answer.elapsed()));
                }
                Event::Look => {}
            }
        }
        self.is_blocked.store(false, Ordering::Relaxed);
        // Handed over or not: where the connection is gone every pending confirm fails now.
        while let Some(published) = in_flight.next().await {
            answers.take(published, &mut in_flight);
        }
        if is_over { End::Over } else { End::Lost }
    }
}

/// Starts a publish; its frames are queued at the future's first poll, which the set does in order.
fn start(channel: Arc<Channel>, outgoing: Outgoing) -> BoxFuture<'static, Published> {
    let Outgoing { message, outcome, budget } = outgoing;
    Box::pin(async move {
        let message_id = message.properties.message_id().map(str::to_owned);
        let (exchange, bytes) = (message.exchange, message.body.len());
        let routing_key = ShortString::try_new(message.routing_key).unwrap_or_default();
        let key = routing_key.clone();
        let publishing = async {
            let confirm = channel
                .basic_publish(
                    ShortString::from(&*exchange),
                    key,
                    BasicPublishOptions { mandatory: message.mandatory, immediate: false },
                    &message.body,
                    message.properties.into_lapin(),
                )
                .await?;
            confirm.await
        };
        // Never given up before its end: the library keeps the place of a confirm that is dropped, and lets it take a return.
        let result = publishing.await.map_err(|error: lapin::Error| {
            let text = error.to_string();
            let forbidden = Forbidden::read(&text, &exchange, routing_key.as_str(), bytes);
            forbidden.map_or(Outcome::Unknown(text), Outcome::Forbidden)
        });
        drop(budget);
        Published { message_id, outcome, result }
    })
}

/// Tells the callers what became of their messages.
#[derive(Default)]
struct Answers {
    returns: Returns<oneshot::Sender<Outcome>>,
    gathered: Vec<Gathered<oneshot::Sender<Outcome>>>,
}

impl Answers {
    /// Takes an answer with all others that are there, as [`Returns`] wants them.
    fn take(&mut self, first: Published, in_flight: &mut FuturesUnordered<BoxFuture<'static, Published>>) {
        self.note(first);
        while let Some(Some(published)) = futures_util::FutureExt::now_or_never(in_flight.next()) {
            self.note(published);
        }
        let tell = &mut |outcome, is_returned| {
            say(outcome, if is_returned { Outcome::Unroutable } else { Outcome::Confirmed });
        };
        self.returns.take(&mut self.gathered, in_flight.is_empty(), tell);
    }

    fn note(&mut self, published: Published) {
        let Published { message_id, outcome, result } = published;
        let id = |returned: Option<lapin::message::BasicReturnMessage>| {
            returned
                .map(|message| message.properties.message_id().clone().map_or_else(String::new, String::from))
        };
        let (carried, waiting) = match result {
            Ok(Confirmation::Ack(returned)) => (id(returned), Some(outcome)),
            Ok(Confirmation::Nack(returned)) => {
                say(outcome, Outcome::Refused);
                (id(returned), None)
            }
            Ok(Confirmation::NotRequested) => {
                let reason = "the channel is not in confirm mode".to_owned();
                return say(outcome, Outcome::Unknown(reason));
            }
            Err(failure) => return say(outcome, failure),
        };
        self.gathered.push(Gathered { id: message_id, carried, waiting });
    }
}

fn say(outcome: oneshot::Sender<Outcome>, what: Outcome) {
    if outcome.send(what).is_err() {
        debug!("nobody waits for this confirm any more");
    }
}
