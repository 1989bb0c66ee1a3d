//! The publishing task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use super::super::connection::{AsyncSession, End, Link};
use super::super::returns::{Gathered, Returns};
use super::refusals::{Place, Refusals};
use super::successor::{Successor, confirm_channel};
use super::{Forbidden, Outcome, Outgoing};
use crate::lifecycle::Lifecycle;

/// How often an idle publisher looks whether its connection still stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One publisher's work over one connection after the other.
pub(super) struct Session {
    pub(super) incoming: mpsc::Receiver<Outgoing>,
    pub(super) max_in_flight: usize,
    pub(super) confirm_timeout: Duration,
    pub(super) lifecycle: Lifecycle,
    pub(super) is_blocked: Arc<AtomicBool>,
}

/// A publish that has an end. Its share of the budget has been given back.
struct Published {
    place: Place,
    is_mandatory: bool,
    message_id: Option<String>,
    outcome: oneshot::Sender<Outcome>,
    result: Result<Confirmation, Outcome>,
}

impl AsyncSession for Session {
    async fn run(&mut self, link: &Link) -> End {
        let end = match link.set_up(confirm_channel(&link.connection)).await {
            Ok(Ok(channel)) => {
                link.announce_up();
                self.publish_all(link, Arc::new(channel)).await
            }
            Ok(Err(error)) => End::Unusable(format!("cannot open a publishing channel: {error}")),
            Err(end) => end,
        };
        self.is_blocked.store(false, Ordering::Relaxed);
        end
    }
}

impl Session {
    async fn publish_all(&mut self, link: &Link, mut channel: Arc<Channel>) -> End {
        enum Event {
            Send(Option<Outgoing>),
            Answered(Published),
            Stop,
            Look,
            Successor,
        }
        let mut in_flight: FuturesUnordered<BoxFuture<'static, Published>> = FuturesUnordered::new();
        let mut answers = Answers::default();
        let mut successor = Successor::default();
        let (mut is_stopping, mut is_over) = (false, false);
        let mut last_answer = Instant::now();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !is_over && link.connection.status().connected() && channel.status().connected() {
            let is_blocked = self.is_blocked(link);
            if let Some(next) = in_flight.is_empty().then(|| successor.take()).flatten() {
                channel = next;
                answers.begin_anew();
            }
            let has_room = in_flight.len() < self.max_in_flight && !successor.is_open();
            let event = tokio::select! {
                biased;
                Some(published) = in_flight.next() => Event::Answered(published),
                // A blocked connection takes messages and sends none: they would pile up in the library, and their copies too.
                outgoing = self.incoming.recv(), if has_room && !is_blocked => Event::Send(outgoing),
                () = self.lifecycle.stopping(), if !is_stopping => Event::Stop,
                () = successor.step() => Event::Successor,
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
                Event::Successor if successor.is_idle() => answers.refusals.put_off(Instant::now()),
                Event::Successor => {}
                Event::Look if is_stopping && is_blocked => {
                    self.send_nothing();
                    return End::Over;
                }
                // Confirms that never come, as of quorum queues without their majority, have taken every place.
                Event::Look if !in_flight.is_empty() && last_answer.elapsed() > self.confirm_timeout * 2 => {
                    return End::Unusable(format!("no confirm came for {:?}", last_answer.elapsed()));
                }
                Event::Look => {
                    let may = successor.is_idle() && !is_blocked && !is_stopping;
                    if may && answers.refusals.want_another_channel(Instant::now()) {
                        successor.begin(&link.connection);
                    }
                }
            }
        }
        // Handed over or not: where the connection is gone every pending confirm fails now.
        answers.take_all(&mut in_flight).await;
        if is_over { End::Over } else { End::Lost }
    }

    /// Whether the broker takes nothing; tells who asks for it, and people where it changes.
    fn is_blocked(&self, link: &Link) -> bool {
        let is_blocked = link.connection.status().blocked();
        if self.is_blocked.swap(is_blocked, Ordering::Relaxed) != is_blocked {
            warn!(is_blocked, "the broker is out of memory or disk, or no longer");
        }
        is_blocked
    }

    /// Tells all who wait.
    fn send_nothing(&mut self) {
        while let Ok(outgoing) = self.incoming.try_recv() {
            say(outgoing.outcome, Outcome::NotSent("the broker takes nothing".to_owned()));
        }
    }
}

/// Starts a publish; its frames are queued at the future's first poll, which the set does in order.
fn start(channel: Arc<Channel>, outgoing: Outgoing) -> BoxFuture<'static, Published> {
    let Outgoing { message, outcome, budget } = outgoing;
    Box::pin(async move {
        let message_id = message.properties.message_id().map(str::to_owned);
        let routing_key = ShortString::try_new(message.routing_key).unwrap_or_default();
        let is_mandatory = message.mandatory;
        let (place, bytes) = (Place { exchange: message.exchange, routing_key }, message.body.len());
        let publishing = async {
            let confirm = channel
                .basic_publish(
                    ShortString::from(&*place.exchange),
                    place.routing_key.clone(),
                    BasicPublishOptions { mandatory: is_mandatory, immediate: false },
                    &message.body,
                    message.properties.into_lapin(),
                )
                .await?;
            confirm.await
        };
        // Never given up before its end: the library keeps the place of a confirm that is dropped, and lets it take a return.
        let result = publishing.await.map_err(|error: lapin::Error| {
            let text = error.to_string();
            let forbidden = Forbidden::read(&text, &place.exchange, place.routing_key.as_str(), bytes);
            forbidden.map_or(Outcome::Unknown(text), Outcome::Forbidden)
        });
        drop(budget);
        Published { place, is_mandatory, message_id, outcome, result }
    })
}

/// Where a message went, and who waits to hear of it.
type Waiting = (Place, oneshot::Sender<Outcome>);

/// Tells the callers what became of their messages on a channel.
#[derive(Default)]
struct Answers {
    returns: Returns<Waiting>,
    gathered: Vec<Gathered<Waiting>>,
    refusals: Refusals,
}

impl Answers {
    /// Takes all answers that are to come.
    async fn take_all(&mut self, in_flight: &mut FuturesUnordered<BoxFuture<'static, Published>>) {
        while let Some(published) = in_flight.next().await {
            self.take(published, in_flight);
        }
    }

    /// Another channel is used; nothing is in flight.
    fn begin_anew(&mut self) {
        self.returns = Returns::default();
        self.refusals.replaced(Instant::now());
    }

    /// Takes an answer with all others that are there, as [`Returns`] wants them.
    fn take(&mut self, first: Published, in_flight: &mut FuturesUnordered<BoxFuture<'static, Published>>) {
        self.note(first);
        while let Some(Some(published)) = futures_util::FutureExt::now_or_never(in_flight.next()) {
            self.note(published);
        }
        let tell = &mut |(place, outcome), is_returned| {
            say(outcome, if is_returned { Outcome::Unroutable } else { Outcome::Confirmed });
            if !is_returned {
                self.refusals.taken(place);
            }
        };
        self.returns.take(&mut self.gathered, in_flight.is_empty(), tell);
    }

    fn note(&mut self, published: Published) {
        let Published { place, is_mandatory, message_id, outcome, result } = published;
        let id = |returned: Option<lapin::message::BasicReturnMessage>| {
            returned
                .map(|message| message.properties.message_id().clone().map_or_else(String::new, String::from))
        };
        let (carried, waiting) = match result {
            Ok(Confirmation::Ack(returned)) => (id(returned), Some((place, outcome))),
            Ok(Confirmation::Nack(returned)) => {
                // What is told to whoever listens goes to many queues, of which one may refuse for as long as its node is down. The others
                // have it, and on another channel it is the same.
                if is_mandatory {
                    self.refusals.refused(place, Instant::now());
                }
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
