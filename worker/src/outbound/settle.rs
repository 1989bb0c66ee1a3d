//! Settlement: a delivery is acknowledged only when something durable holds its duty instead.
//!
//! A confirmed reply, retry or dead copy does; a refused or unanswered publish does not and is published again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use millrace_common::amqp::bundle::HEAD_BYTES;
use millrace_common::amqp::message::ReplyKey;
use millrace_common::amqp::publisher::{Message, Outcome, Publisher};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::dispatch::Dispatch;
use super::gather::{Errand, gather};
use super::readers::{Readers, Trouble};
use crate::job::{Answer, Duty, Settlement, Verdict};

/// Pause before a reply queue that did not exist is tried a second time: its owner may just be reconnecting.
const RETURNED_PAUSE: Duration = Duration::from_millis(500);
/// Pause between publishes that had no answer or were refused.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// Settles duties over one publisher.
pub struct Settler {
    publisher: Publisher,
    dispatch: Dispatch,
    refused_retry: Duration,
    max_bytes: usize,
    readers: Mutex<Readers>,
}

/// What became of a publish that was tried until it had an end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivered {
    /// Confirmed.
    Yes,
    /// Refused for as long as refusals are retried, or for ever.
    Refused,
    /// No queue is bound for its key, twice.
    Gone,
}

impl Settler {
    /// `refused_retry` is how long a full queue is tried again; `max_bytes` how many bytes of answers may wait for their
    /// confirm before further ones are left with the instances.
    pub fn new(publisher: Publisher, dispatch: Dispatch, refused_retry: Duration, max_bytes: usize) -> Self {
        Self { publisher, dispatch, refused_retry, max_bytes, readers: Mutex::default() }
    }

    /// Settles everything that comes, until the channel closes and the last duty is done.
    ///
    /// The prefetch bounds the duties, `max_bytes` what their answers hold: beyond, instances feel a slow broker.
    pub async fn run(self, mut incoming: mpsc::Receiver<Vec<Settlement>>) {
        enum Event {
            Came(Option<Vec<Settlement>>),
            Done(usize),
        }
        let mut open = FuturesUnordered::new();
        let mut is_open = true;
        let mut bytes = 0;
        while is_open || !open.is_empty() {
            let event = tokio::select! {
                Some(done) = open.next() => Event::Done(done),
                settlements = incoming.recv(), if is_open && bytes < self.max_bytes => Event::Came(settlements),
            };
            match event {
                Event::Done(done) => bytes -= done,
                Event::Came(Some(settlements)) => {
                    for errand in gather(settlements) {
                        let held = held(&errand);
                        bytes += held;
                        let settling = self.run_errand(errand);
                        // Else one turn's end would have all others looked at in vain.
                        open.push(tokio::task::unconstrained(async move {
                            settling.await;
                            held
                        }));
                    }
                }
                Event::Came(None) => is_open = false,
            }
        }
    }

    async fn run_errand(&self, errand: Errand) {
        match errand {
            Errand::One(settlement) => self.settle(settlement.0, settlement.1).await,
            Errand::Replies(reply_to, replies) => self.settle_together(&reply_to, replies).await,
        }
    }

    /// One message for all. Where it is not taken each goes its own way.
    async fn settle_together(&self, reply_to: &ReplyKey, replies: Vec<(Duty, Answer)>) {
        if self.publisher.publish(self.dispatch.bundle(reply_to, &replies)).await == Outcome::Confirmed {
            self.readers().recovered(reply_to.as_str());
            return replies.into_iter().for_each(|(duty, _)| acknowledge(duty));
        }
        debug!(replies = replies.len(), "a bundle was not taken; its replies go one by one");
        let alone = replies.into_iter().map(|(duty, answer)| self.settle(duty, Verdict::Reply(answer)));
        join_all(alone).await;
    }

    async fn settle(&self, duty: Duty, verdict: Verdict) {
        match verdict {
            Verdict::GiveBack => {
                if duty.ticket.nack().is_err() {
                    debug!("gave back a delivery of a connection that is gone");
                }
                return;
            }
            Verdict::Reply(answer) => {
                if let Some(reply_to) = &duty.reply_to {
                    self.reply(&duty, reply_to, &answer).await;
                }
            }
            Verdict::Retry { step, headers } => {
                debug!(request_id = ?duty.request_id, step, "passing a request on");
                self.until_confirmed(|| self.dispatch.retry(&duty, step, &headers)).await;
            }
            Verdict::Dead { reason, detail } => {
                warn!(request_id = ?duty.request_id, reason, detail, "kept a request for people");
                self.until_confirmed(|| self.dispatch.dead(&duty, reason, &detail)).await;
            }
        }
        acknowledge(duty);
    }

    async fn reply(&self, duty: &Duty, reply_to: &ReplyKey, answer: &Answer) {
        let message = || self.dispatch.reply(duty, reply_to, answer);
        let key = reply_to.as_str();
        let delivered = self.deliver(message, self.refused_retry, |trouble| {
            self.readers().trouble(key, Instant::now()) == Some(trouble)
        });
        match delivered.await {
            Delivered::Yes => self.readers().recovered(key),
            Delivered::Gone => {
                self.readers().note(key, Trouble::Gone, Instant::now());
                info!(request_id = ?duty.request_id, "the requester is gone, its reply dropped");
            }
            Delivered::Refused => {
                self.readers().note(key, Trouble::Stuck, Instant::now());
                warn!(request_id = ?duty.request_id, "the requester's reply queue takes nothing, the request kept for people");
                let detail =
                    "the reply queue is full, its reader stuck; or the reply is longer than the broker takes";
                self.until_confirmed(|| self.dispatch.dead(duty, "reply_refused", detail)).await;
            }
        }
    }

    /// For messages whose queue must exist and take them: there is nothing else to do with them.
    async fn until_confirmed(&self, message: impl Fn() -> Message) {
        while self.deliver(&message, Duration::MAX, |_| false).await != Delivered::Yes {
            let exchange = message().exchange;
            warn!(%exchange, "no queue takes what must be kept; run `millrace topology apply`");
            tokio::time::sleep(AGAIN_PAUSE * 5).await;
        }
    }

    /// Publishes until there is an end. The message is made anew for each attempt, since mostly there is one only. `is_known`
    /// tells whether another message has met this trouble lately, so that this one need not try for long.
    async fn deliver(
        &self,
        message: impl Fn() -> Message,
        patience: Duration,
        is_known: impl Fn(Trouble) -> bool,
    ) -> Delivered {
        let started = Instant::now();
        let mut returned_before = false;
        loop {
            match self.publisher.publish(message()).await {
                Outcome::Confirmed => return Delivered::Yes,
                Outcome::Unroutable if returned_before || is_known(Trouble::Gone) => return Delivered::Gone,
                Outcome::Unroutable => {
                    returned_before = true;
                    tokio::time::sleep(RETURNED_PAUSE).await;
                }
                Outcome::Refused if started.elapsed() >= patience || is_known(Trouble::Stuck) => {
                    return Delivered::Refused;
                }
                Outcome::Refused => tokio::time::sleep(AGAIN_PAUSE).await,
                Outcome::Forbidden(forbidden) => {
                    error!(reason = forbidden.reason(), "the broker forbids what this worker publishes");
                    return Delivered::Refused;
                }
                // Publishing again may double it; callers drop the second copy, a lost one they could not make up for.
                Outcome::Unknown(reason) | Outcome::NotSent(reason) => {
                    debug!(reason, "publishing again");
                    tokio::time::sleep(AGAIN_PAUSE).await;
                }
            }
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        // Single map operations; a panic cannot leave it half changed.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn acknowledge(duty: Duty) {
    if let Err(error) = duty.ticket.ack() {
        // Answered or passed on, but the broker will deliver it again; its caller drops the second reply.
        debug!(%error, "could not acknowledge");
    }
}

/// Bytes that an errand keeps until it is done, beyond what the requests' budgets count.
fn held(errand: &Errand) -> usize {
    match errand {
        Errand::Replies(_, replies) => {
            let bodies: usize = replies.iter().map(|(_, answer)| answer.body.bytes.len()).sum();
            2 * bodies + replies.len() * HEAD_BYTES
        }
        Errand::One(settlement) => match &settlement.1 {
            Verdict::Reply(answer) => answer.body.bytes.len(),
            Verdict::Retry { .. } | Verdict::Dead { .. } | Verdict::GiveBack => 0,
        },
    }
}
