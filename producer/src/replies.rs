//! Replies: each is matched by id to the request that waits for it, once; later ones are duplicates.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use millrace_common::amqp::bundle;
use millrace_common::amqp::consumer::{Accept, Delivery, Ticket};
use millrace_common::amqp::message::ReplyMeta;
use millrace_common::protocol::codec::{DecodeError, Limits, decode_response};
use millrace_common::protocol::response::InferResponse;
use millrace_common::protocol::status::ErrorBody;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::client::publish::Pass;
use crate::error::Error;
use crate::pack::{self, Entry};
use crate::response::Response;

/// Bodies up to this many bytes are decoded in place: 32 KiB of JSON take about 200 µs.
const INLINE_BYTES: usize = 32 << 10;

/// A reply as received, not yet decoded.
#[derive(Debug)]
pub(crate) struct RawReply {
    /// What its properties say; the problem where they say nothing.
    meta: Result<ReplyMeta, String>,
    body: Bytes,
    receipt: Unclaimed,
}

/// A receipt that no caller has yet. Where the caller gives the result up, the reply is done with.
#[derive(Debug)]
pub(crate) struct Unclaimed(Option<Receipt>);

impl Unclaimed {
    pub(crate) fn new(receipt: Receipt) -> Self {
        Self(Some(receipt))
    }

    pub(crate) fn claim(mut self) -> Receipt {
        self.0.take().unwrap_or(Receipt::DONE)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(receipt) = self.0.take() {
            receipt.acknowledge();
        }
    }
}

/// A reply whose acknowledgement is the caller's to give.
#[derive(Debug)]
pub struct Reply {
    /// The result, or why there is none.
    pub outcome: Result<Response, Error>,
    /// Acknowledges the reply to the broker, once it is safe with the caller.
    pub receipt: Receipt,
}

/// The duty to acknowledge a reply. Dropped unused, the reply comes again when its queue is next consumed, if it is.
#[derive(Debug)]
#[must_use = "a reply that is not acknowledged comes again"]
pub struct Receipt(Duty);

#[derive(Debug)]
enum Duty {
    Done,
    Own(Ticket),
    Shared(Arc<SharedTicket>),
}

/// The ticket of a reply to several requests: acknowledged when the last of them is.
#[derive(Debug)]
struct SharedTicket {
    left: AtomicUsize,
    ticket: Mutex<Option<Ticket>>,
}

impl Receipt {
    const DONE: Self = Self(Duty::Done);

    /// The reply is safe; the broker may forget it. One that answers several requests is acknowledged with the last of them.
    pub fn acknowledge(self) {
        let ticket = match self.0 {
            Duty::Done => return,
            Duty::Own(ticket) => Some(ticket),
            Duty::Shared(shared) if shared.left.fetch_sub(1, Ordering::AcqRel) == 1 => {
                shared.ticket.lock().unwrap_or_else(PoisonError::into_inner).take()
            }
            Duty::Shared(_) => None,
        };
        if let Some(Err(error)) = ticket.map(Ticket::ack) {
            debug!(%error, "the reply will come again and be dropped as a duplicate");
        }
    }

    /// One receipt for each of the `requests` that the reply answers; all of them have to be used.
    pub(crate) fn share(self, requests: usize) -> Vec<Self> {
        match self.0 {
            Duty::Own(ticket) if requests > 1 => {
                let ticket = Mutex::new(Some(ticket));
                let shared = Arc::new(SharedTicket { left: AtomicUsize::new(requests), ticket });
                (0..requests).map(|_| Self(Duty::Shared(Arc::clone(&shared)))).collect()
            }
            Duty::Shared(shared) if requests > 1 => {
                shared.left.fetch_add(requests - 1, Ordering::AcqRel);
                (0..requests).map(|_| Self(Duty::Shared(Arc::clone(&shared)))).collect()
            }
            duty => std::iter::once(Self(duty)).chain((1..requests).map(|_| Self::DONE)).collect(),
        }
    }
}

/// A reply that no request of this process waits for: to an earlier run that used the same reply key, or a duplicate.
#[derive(Debug)]
pub struct Orphan {
    /// The request it answers.
    pub request_id: String,
    /// The caller's id of that request.
    pub correlation_id: Option<String>,
    /// The reply.
    pub reply: Reply,
}

impl Orphan {
    /// The members of a pack, each with its part of the reply; the orphan itself where it is none.
    fn parts(self) -> Vec<Self> {
        let is_pack = self.correlation_id.as_deref() == Some(pack::MARK);
        let Some(members) =
            self.reply.outcome.as_ref().ok().filter(|_| is_pack).and_then(|whole| pack::members(&whole.body))
        else {
            return vec![self];
        };
        let rows: Vec<u32> = members.iter().map(|member| member.rows).collect();
        let Some(parts) = self.reply.outcome.as_ref().ok().and_then(|whole| whole.parts(&rows)) else {
            return vec![self];
        };
        let receipts = self.reply.receipt.share(members.len());
        let each = members.into_iter().zip(parts).zip(receipts);
        each.map(|((member, part), receipt)| {
            let Entry { correlation_id, body_id, .. } = member;
            let outcome = Ok(part.addressed(correlation_id.clone(), body_id));
            Self { request_id: self.request_id.clone(), correlation_id, reply: Reply { outcome, receipt } }
        })
        .collect()
    }
}

impl RawReply {
    pub(crate) async fn decode(self, limits: Limits) -> Reply {
        let Self { meta, body, receipt } = self;
        Reply { outcome: decode(meta, body, limits).await, receipt: receipt.claim() }
    }
}

async fn decode(meta: Result<ReplyMeta, String>, body: Bytes, limits: Limits) -> Result<Response, Error> {
    if body.len() <= INLINE_BYTES {
        return outcome(meta, &body, &limits);
    }
    tokio::task::spawn_blocking(move || outcome(meta, &body, &limits))
        .await
        .expect("decoding never panics and is never cancelled")
}

fn outcome(meta: Result<ReplyMeta, String>, body: &Bytes, limits: &Limits) -> Result<Response, Error> {
    let meta = meta.map_err(|reason| Error::MalformedReply { reason })?;
    let Some(code) = meta.failure else {
        return response(&meta, body, limits)
            .map(|body| Response { body, meta })
            .map_err(|error| Error::MalformedReply { reason: error.to_string() });
    };
    let message = serde_json::from_slice::<ErrorBody>(body).map_or_else(
        |_| String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned(),
        |body| body.error,
    );
    Err(Error::Failed { code, message, retry_after: meta.retry_after, worker: meta.worker })
}

fn response(meta: &ReplyMeta, body: &Bytes, limits: &Limits) -> Result<InferResponse, DecodeError> {
    decode_response(body, meta.header_length, limits)
}

/// The requests that wait, by id.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    waiting: Mutex<HashMap<String, Waiter>>,
    is_stopping: AtomicBool,
}

/// A request that waits.
#[derive(Debug)]
struct Waiter {
    reply: oneshot::Sender<RawReply>,
    /// Its way through the gate, once the broker has it: its answer makes room for another, whenever its caller looks at it.
    pass: Option<Pass>,
}

/// A request's place among those that wait; dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Place {
    pending: Arc<Pending>,
    id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = self.pending.lock().remove(&self.id);
        drop(gone);
    }
}

impl Place {
    /// Keeps the pass of a request that the broker has, until it is answered or given up.
    pub(crate) fn keep(&self, mut pass: Pass) {
        match self.pending.lock().get_mut(&self.id) {
            Some(waiter) => waiter.pass = Some(pass),
            None => pass.answered(),
        }
    }
}

impl Pending {
    pub(crate) fn wait_for(self: &Arc<Self>, id: String) -> (Place, oneshot::Receiver<RawReply>) {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(id.clone(), Waiter { reply: sender, pass: None });
        (Place { pending: Arc::clone(self), id }, receiver)
    }

    /// From now on replies that nobody takes stay in the queue.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Gives every waiting request up.
    pub(crate) fn give_up(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn take(&self, id: &str) -> Option<oneshot::Sender<RawReply>> {
        let Waiter { reply, pass } = self.lock().remove(id)?;
        if let Some(mut pass) = pass {
            pass.answered();
        }
        Some(reply)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiter>> {
        // Single map operations; a panic cannot leave it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands replies to those who wait.
#[derive(Debug)]
pub(crate) struct Replies {
    pub(crate) pending: Arc<Pending>,
    pub(crate) orphans: Option<mpsc::Sender<Orphan>>,
    /// Nobody will consume the reply queue after this process, so a reply is done with once it is here: it would help nobody
    /// to let it fill the prefetch window until its caller takes it.
    pub(crate) is_ephemeral: bool,
    pub(crate) limits: Limits,
}

impl Accept for Replies {
    async fn accept(&self, delivery: Delivery) {
        let Delivery { properties, body, ticket, .. } = delivery;
        let receipt = Receipt(Duty::Own(ticket));
        if bundle::is_bundle(&properties) {
            return match bundle::read(&properties, &body) {
                Ok(replies) => self.accept_all(replies, receipt).await,
                Err(error) => {
                    warn!(%error, "dropped a message with replies");
                    receipt.acknowledge();
                }
            };
        }
        let Some(request_id) = properties.message_id().map(str::to_owned) else {
            warn!("dropped a reply that answers nothing");
            return receipt.acknowledge();
        };
        let meta = ReplyMeta::read(&properties).map_err(|error| error.to_string());
        self.accept_one(request_id, meta, body, receipt).await;
    }
}

impl Replies {
    async fn accept_all(&self, replies: Vec<(ReplyMeta, Bytes)>, receipt: Receipt) {
        if replies.is_empty() {
            return receipt.acknowledge();
        }
        let receipts = receipt.share(replies.len());
        for ((meta, body), receipt) in replies.into_iter().zip(receipts) {
            self.accept_one(meta.request_id.clone(), Ok(meta), body, receipt).await;
        }
    }

    async fn accept_one(
        &self,
        request_id: String,
        meta: Result<ReplyMeta, String>,
        body: Bytes,
        mut receipt: Receipt,
    ) {
        let waiter = self.pending.take(&request_id);
        if waiter.is_none() && self.orphans.is_none() {
            debug!(request_id, "dropped a reply that nobody waits for");
            return receipt.acknowledge();
        }
        if self.is_ephemeral {
            receipt.acknowledge();
            receipt = Receipt::DONE;
        }
        let correlation_id = meta.as_ref().ok().and_then(|meta| meta.correlation_id.clone());
        let reply = RawReply { meta, body, receipt: Unclaimed::new(receipt) };
        let unclaimed = match waiter {
            Some(waiter) => waiter.send(reply).err(),
            None => Some(reply),
        };
        if let (Some(reply), Some(orphans)) = (unclaimed, &self.orphans) {
            self.orphan(request_id, correlation_id, reply, orphans).await;
        }
    }

    /// Hands over a reply that nobody waits for. Given up half-way, it stays in the queue.
    async fn orphan(
        &self,
        request_id: String,
        correlation_id: Option<String>,
        RawReply { meta, body, receipt }: RawReply,
        orphans: &mpsc::Sender<Orphan>,
    ) {
        let receipt = receipt.claim();
        let outcome = decode(meta, body, self.limits).await;
        let orphan = Orphan { request_id, correlation_id, reply: Reply { outcome, receipt } };
        for orphan in orphan.parts() {
            if let Err(mpsc::error::SendError(orphan)) = orphans.send(orphan).await
                && !self.pending.is_stopping.load(Ordering::Relaxed)
            {
                // Their reader is gone, the client is not: unacknowledged they would fill its window.
                orphan.reply.receipt.acknowledge();
            }
        }
    }
}
