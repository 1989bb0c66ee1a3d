//! Settlement: a delivery is acknowledged only when something durable holds its duty instead.
//!
//! A confirmed reply, retry or dead copy does; a refused or unanswered publish does not and is published again.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millrace_common::amqp::publisher::{Message, Outcome, Publisher};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::dispatch::Dispatch;
use crate::job::{Duty, Settlement, Verdict};

/// Pause before a reply queue that did not exist is tried a second time: its owner may just be reconnecting.
const RETURNED_PAUSE: Duration = Duration::from_millis(500);
/// Pause between publishes that had no answer or were refused.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// Settles duties over one publisher.
pub struct Settler {
    publisher: Publisher,
    dispatch: Dispatch,
    refused_retry: Duration,
}

/// What became of a publish that was tried until it had an end.
enum Delivered {
    /// Confirmed.
    Yes,
    /// Refused for as long as refusals are retried.
    Refused,
    /// No queue is bound for its key, twice.
    Gone,
}

impl Settler {
    /// `refused_retry` is how long a full queue is tried again.
    pub fn new(publisher: Publisher, dispatch: Dispatch, refused_retry: Duration) -> Self {
        Self { publisher, dispatch, refused_retry }
    }

    /// Settles everything that comes, until the channel closes and the last duty is done.
    ///
    /// Nothing bounds the duties here but the prefetch, which bounds all deliveries.
    pub async fn run(self, mut incoming: mpsc::Receiver<Vec<Settlement>>) {
        enum Event {
            Came(Option<Vec<Settlement>>),
            Done,
        }
        let mut open = FuturesUnordered::new();
        let mut is_open = true;
        while is_open || !open.is_empty() {
            let event = tokio::select! {
                Some(()) = open.next() => Event::Done,
                settlements = incoming.recv(), if is_open => Event::Came(settlements),
            };
            match event {
                Event::Done => {}
                Event::Came(Some(settlements)) => {
                    open.extend(settlements.into_iter().map(|(duty, verdict)| self.settle(duty, verdict)));
                }
                Event::Came(None) => is_open = false,
            }
        }
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
                if let Some(message) = self.dispatch.reply(&duty, &answer) {
                    self.reply(&duty, message).await;
                }
            }
            Verdict::Retry { step, headers } => {
                let message = self.dispatch.retry(&duty, step, &headers);
                debug!(request_id = ?duty.request_id, exchange = %message.exchange, "passing a request on");
                self.until_confirmed(message).await;
            }
            Verdict::Dead { reason, detail } => {
                warn!(request_id = ?duty.request_id, reason, detail, "kept a request for people");
                self.until_confirmed(self.dispatch.dead(&duty, reason, &detail)).await;
            }
        }
        if let Err(error) = duty.ticket.ack() {
            // Answered or passed on, but the broker will deliver it again; its caller drops the second reply.
            debug!(%error, "could not acknowledge");
        }
    }

    async fn reply(&self, duty: &Duty, message: Message) {
        match self.deliver(message, self.refused_retry).await {
            Delivered::Yes => {}
            Delivered::Gone => {
                info!(request_id = ?duty.request_id, "the requester is gone, its reply dropped")
            }
            Delivered::Refused => {
                warn!(request_id = ?duty.request_id, "the requester's reply queue is full, the request kept for people");
                let dead =
                    self.dispatch.dead(duty, "reply_refused", "the reply queue is full: its reader is stuck");
                self.until_confirmed(dead).await;
            }
        }
    }

    /// For messages whose queue must exist and take them: there is nothing else to do with them.
    async fn until_confirmed(&self, message: Message) {
        loop {
            match self.deliver(message.clone(), Duration::MAX).await {
                Delivered::Yes => return,
                Delivered::Gone | Delivered::Refused => {
                    warn!(exchange = %message.exchange, "no queue takes what must be kept; run `millrace topology apply`");
                    tokio::time::sleep(AGAIN_PAUSE * 5).await;
                }
            }
        }
    }

    async fn deliver(&self, message: Message, patience: Duration) -> Delivered {
        let started = Instant::now();
        let mut returned_before = false;
        loop {
            match self.publisher.publish(message.clone()).await {
                Outcome::Confirmed => return Delivered::Yes,
                Outcome::Unroutable if returned_before => return Delivered::Gone,
                Outcome::Unroutable => {
                    returned_before = true;
                    tokio::time::sleep(RETURNED_PAUSE).await;
                }
                Outcome::Refused if started.elapsed() >= patience => return Delivered::Refused,
                Outcome::Refused => tokio::time::sleep(AGAIN_PAUSE).await,
                // Publishing again may double it; callers drop the second copy, a lost one they could not make up for.
                Outcome::Unknown(reason) | Outcome::NotSent(reason) => {
                    debug!(reason, "publishing again");
                    tokio::time::sleep(AGAIN_PAUSE).await;
                }
            }
        }
    }
}
