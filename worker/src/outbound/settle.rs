//! Settlement: a delivery is acknowledged only when something durable holds its duty instead.
//!
//! A confirmed reply, retry or dead copy does; a refused or unanswered publish does not and is published again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use millrace_common::amqp::bundle::HEAD_BYTES;
use millrace_common::amqp::message::{ReplyKey, header};
use millrace_common::amqp::publisher::{Forbidden, Message, Outcome, Publisher};
use millrace_common::protocol::status::Code;
use millrace_common::switches::Feature;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::access_log;
use super::confirms::Confirms;
use super::dispatch::Dispatch;
use super::gather::{Errand, apart, gather};
use super::readers::{Readers, Trouble};
use crate::inbound::remembered::Remembered;
use crate::job::{Answer, Duty, Settlement, Verdict};
use crate::live::Live;

/// Pause before a reply queue that did not exist is tried a second time: its owner may just be reconnecting.
const RETURNED_PAUSE: Duration = Duration::from_millis(500);
/// How long an acknowledgement may take to leave.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(30);
/// Runs of a request more, where its reply queue takes no answer: it is full, its reader stuck, or it has no leader in its cluster. Held
/// instead, the answers would hold their places in the lane and the prefetch window.
const MOST_ATTEMPTS: u32 = 3;
/// The part of all answers' bytes that one user's may hold while they are refused and tried again, and one more.
const REFUSED_PART: usize = 8;
/// Pause between publishes that had no answer or were refused.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// Settles duties over one publisher.
pub struct Settler {
    publisher: Publisher,
    dispatch: Dispatch,
    refused_retry: Duration,
    max_bytes: usize,
    readers: Arc<Readers>,
    confirms: Arc<Confirms>,
    answered: Arc<Remembered>,
    live: Arc<Live>,
}

/// What became of a publish that was tried until it had an end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivered {
    /// Confirmed.
    Yes,
    /// Refused for as long as refusals are retried, or for ever.
    Refused,
    /// Refused, while other answers of the same user that are refused hold all that they may.
    Crowded,
    /// No queue is bound for its key, twice.
    Gone,
    /// Longer than the broker takes.
    TooLong,
}

impl Settler {
    /// `refused_retry` is how long a full queue is tried again; `max_bytes` how many bytes of answers may wait for their
    /// confirm before further ones are left with the instances. What it finds of requesters stands in [`Settler::readers`].
    pub fn new(
        publisher: Publisher,
        dispatch: Dispatch,
        refused_retry: Duration,
        max_bytes: usize,
        live: Arc<Live>,
    ) -> Self {
        Self {
            publisher,
            dispatch,
            refused_retry,
            max_bytes,
            readers: Arc::default(),
            confirms: Arc::default(),
            answered: Arc::default(),
            live,
        }
    }

    /// Requesters in trouble.
    pub fn readers(&self) -> Arc<Readers> {
        Arc::clone(&self.readers)
    }

    /// How long what it publishes takes to be confirmed.
    pub fn confirms(&self) -> Arc<Confirms> {
        Arc::clone(&self.confirms)
    }

    /// What was answered and could not be acknowledged: the broker delivers it again. By reply key.
    pub fn answered(&self) -> Arc<Remembered> {
        Arc::clone(&self.answered)
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
                    if self.live.has(Feature::AccessLog) {
                        settlements.iter().for_each(access_log::tell);
                    }
                    let errands = if self.live.has(Feature::Bundles) { gather } else { apart };
                    for errand in errands(settlements) {
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
        if self.publish(self.dispatch.bundle(reply_to, &replies)).await == Outcome::Confirmed {
            self.readers.recovered(reply_to.as_str());
            return replies.into_iter().for_each(|(duty, _)| self.acknowledge(duty, true));
        }
        debug!(replies = replies.len(), "a bundle was not taken; its replies go one by one");
        let alone = replies.into_iter().map(|(duty, answer)| self.settle(duty, Verdict::Reply(answer)));
        join_all(alone).await;
    }

    async fn settle(&self, duty: Duty, verdict: Verdict) {
        let mut is_answered = false;
        match verdict {
            Verdict::GiveBack => {
                if duty.ticket.nack().is_err() {
                    debug!("gave back a delivery of a connection that is gone");
                }
                return;
            }
            Verdict::Done => is_answered = true,
            Verdict::Reply(answer) => is_answered = self.answer(&duty, &answer, MOST_ATTEMPTS).await,
            Verdict::Condemn { reason, answer } => {
                let detail = String::from_utf8_lossy(&answer.body.bytes).into_owned();
                warn!(request_id = ?duty.request_id, reason, detail, "answered a request and kept it for people");
                self.until_confirmed(|| self.dispatch.dead(&duty, reason, &detail)).await;
                // It must not run again, whatever becomes of the answer.
                is_answered = self.answer(&duty, &answer, 0).await;
            }
            Verdict::Solo { headers, moving } => {
                debug!(request_id = ?duty.request_id, redeliveries = duty.redeliveries, "to run by itself");
                self.until_confirmed(|| self.dispatch.solo(&duty, &headers)).await;
                self.acknowledge(duty, false);
                tokio::time::sleep(ACKNOWLEDGED_WITHIN).await;
                drop(moving);
                return;
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
        self.acknowledge(duty, is_answered);
    }

    /// Returns whether its caller's reply queue has the answer.
    async fn answer(&self, duty: &Duty, answer: &Answer, most_attempts: u32) -> bool {
        match &duty.reply_to {
            Some(reply_to) => self.reply(duty, reply_to, answer, most_attempts).await,
            None => false,
        }
    }

    async fn reply(&self, duty: &Duty, reply_to: &ReplyKey, answer: &Answer, most_attempts: u32) -> bool {
        let key = reply_to.as_str();
        let mut delivered = self.deliver_reply(duty, reply_to, answer).await;
        if delivered == Delivered::TooLong {
            let message = format!(
                "the answer is {} bytes long, more than the broker takes in one message (its `max_message_size`)",
                answer.body.bytes.len()
            );
            let instead = Answer::failure(Code::TooLarge, message);
            delivered = self.deliver_reply(duty, reply_to, &instead).await;
        }
        match delivered {
            Delivered::Yes => self.readers.recovered(key),
            Delivered::Gone => {
                self.readers.note(key, Trouble::Gone, Instant::now());
                info!(request_id = ?duty.request_id, "the requester is gone, its reply dropped");
            }
            Delivered::Refused | Delivered::TooLong | Delivered::Crowded => {
                // Cut short for the user's other answers, it says little of this queue.
                let is_crowded = delivered == Delivered::Crowded;
                if !is_crowded {
                    self.readers.note(key, Trouble::Stuck, Instant::now());
                }
                if duty.attempt < most_attempts {
                    self.try_again_later(duty).await;
                } else {
                    warn!(request_id = ?duty.request_id, "the requester's reply queue takes nothing, the request kept for people");
                    let detail = match is_crowded {
                        true => {
                            "the reply queue is full, and the user's other answers that are refused hold all that they may"
                        }
                        false => "the reply queue is full, its reader stuck",
                    };
                    self.until_confirmed(|| self.dispatch.dead(duty, "reply_refused", detail)).await;
                }
            }
        }
        delivered == Delivered::Yes
    }

    async fn try_again_later(&self, duty: &Duty) {
        debug!(request_id = ?duty.request_id, "the reply queue takes nothing; the request is tried again later");
        let attempts = [(header::ATTEMPT, u64::from(duty.attempt) + 1)];
        self.until_confirmed(|| self.dispatch.retry(duty, usize::MAX, &attempts)).await;
    }

    async fn deliver_reply(&self, duty: &Duty, reply_to: &ReplyKey, answer: &Answer) -> Delivered {
        let (mut refused, mut is_crowded) = (None, false);
        let is_known = |trouble| {
            if self.readers.trouble(reply_to.as_str(), Instant::now()) == Some(trouble) {
                return true;
            }
            if trouble == Trouble::Stuck {
                // It was refused. What one user does not take must not fill what all answers may hold.
                let bytes = answer.body.bytes.len();
                let refused = refused.get_or_insert_with(|| self.readers.refuses(reply_to.user(), bytes));
                is_crowded = refused.others() > self.max_bytes / REFUSED_PART;
            }
            is_crowded
        };
        let delivered =
            self.deliver(|| self.dispatch.reply(duty, reply_to, answer), self.refused_retry, is_known).await;
        if delivered == Delivered::Refused && is_crowded { Delivered::Crowded } else { delivered }
    }

    /// `is_answered` says that its caller has an answer: then it need not run again. What was passed on must, where it went.
    fn acknowledge(&self, duty: Duty, is_answered: bool) {
        let Err(error) = duty.ticket.ack() else { return };
        // The broker will deliver it again; its caller drops the second reply.
        debug!(%error, "could not acknowledge");
        if let (Some(reply_to), true) = (duty.reply_to, is_answered) {
            self.answered.add(reply_to.as_str(), duty.request_id);
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

    async fn publish(&self, message: Message) -> Outcome {
        let started = Instant::now();
        let outcome = self.publisher.publish(message).await;
        if outcome == Outcome::Confirmed {
            self.confirms.add(started.elapsed());
        }
        outcome
    }

    /// Publishes until there is an end. The message is made anew for each attempt, since mostly there is one only. `is_known`
    /// tells whether another message has met this trouble lately, so that this one need not try for long.
    async fn deliver(
        &self,
        message: impl Fn() -> Message,
        patience: Duration,
        mut is_known: impl FnMut(Trouble) -> bool,
    ) -> Delivered {
        let started = Instant::now();
        let mut returned_before = false;
        loop {
            match self.publish(message()).await {
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
                Outcome::Forbidden(Forbidden::Size(reason)) => {
                    debug!(reason, "longer than the broker takes");
                    return Delivered::TooLong;
                }
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
            Verdict::Condemn { answer, .. } => answer.body.bytes.len(),
            Verdict::Retry { .. }
            | Verdict::Solo { .. }
            | Verdict::Dead { .. }
            | Verdict::GiveBack
            | Verdict::Done => 0,
        },
    }
}
