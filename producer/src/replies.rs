//! Replies: each is matched by id to the request that waits for it, once; later ones are duplicates.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use millrace_common::amqp::consumer::{Accept, Delivery, Ticket};
use millrace_common::amqp::message::ReplyMeta;
use millrace_common::protocol::codec::{DecodeError, Limits, decode_response};
use millrace_common::protocol::response::InferResponse;
use millrace_common::protocol::status::ErrorBody;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::error::Error;
use crate::response::Response;

/// Bodies up to this many bytes are decoded in place: 32 KiB of JSON take about 200 µs.
const INLINE_BYTES: usize = 32 << 10;

/// A reply as received, not yet decoded.
#[derive(Debug)]
pub(crate) struct RawReply {
    pub(crate) meta: ReplyMeta,
    body: Bytes,
    receipt: Receipt,
}

/// A reply whose acknowledgement is the caller's to give.
#[derive(Debug)]
pub struct Reply {
    /// The result, or why there is none.
    pub outcome: Result<Response, Error>,
    /// Acknowledges the reply to the broker, once it is safe with the caller.
    pub receipt: Receipt,
}

/// The duty to acknowledge a reply. Dropped unused, the reply comes again when its queue is next consumed.
#[derive(Debug)]
#[must_use = "a reply that is not acknowledged comes again"]
pub struct Receipt(Ticket);

impl Receipt {
    /// The reply is safe; the broker may forget it.
    pub fn acknowledge(self) {
        if let Err(error) = self.0.ack() {
            debug!(%error, "the reply will come again and be dropped as a duplicate");
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

impl RawReply {
    pub(crate) async fn decode(self, limits: Limits) -> Reply {
        let Self { meta, body, receipt } = self;
        let outcome = if body.len() <= INLINE_BYTES {
            outcome(meta, &body, &limits)
        } else {
            tokio::task::spawn_blocking(move || outcome(meta, &body, &limits))
                .await
                .expect("decoding never panics and is never cancelled")
        };
        Reply { outcome, receipt }
    }
}

fn outcome(meta: ReplyMeta, body: &Bytes, limits: &Limits) -> Result<Response, Error> {
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
    waiting: Mutex<HashMap<String, oneshot::Sender<RawReply>>>,
}

/// A request's place among those that wait; dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Place {
    pending: Arc<Pending>,
    id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.id);
    }
}

impl Pending {
    pub(crate) fn wait_for(self: &Arc<Self>, id: String) -> (Place, oneshot::Receiver<RawReply>) {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(id.clone(), sender);
        (Place { pending: Arc::clone(self), id }, receiver)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn take(&self, id: &str) -> Option<oneshot::Sender<RawReply>> {
        self.lock().remove(id)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<RawReply>>> {
        // Single map operations; a panic cannot leave it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands replies to those who wait.
#[derive(Debug)]
pub(crate) struct Replies {
    pub(crate) pending: Arc<Pending>,
    pub(crate) orphans: Option<mpsc::Sender<Orphan>>,
    pub(crate) limits: Limits,
}

impl Accept for Replies {
    async fn accept(&self, delivery: Delivery) {
        let receipt = Receipt(delivery.ticket);
        let meta = match ReplyMeta::read(&delivery.properties) {
            Ok(meta) => meta,
            Err(error) => {
                warn!(%error, "dropped a reply that answers nothing");
                return receipt.acknowledge();
            }
        };
        let waiter = self.pending.take(&meta.request_id);
        let reply = RawReply { meta, body: delivery.body, receipt };
        let unclaimed = match waiter {
            Some(waiter) => waiter.send(reply).err(),
            None => Some(reply),
        };
        if let Some(reply) = unclaimed {
            self.orphan(reply).await;
        }
    }
}

impl Replies {
    async fn orphan(&self, reply: RawReply) {
        let Some(orphans) = &self.orphans else {
            debug!(request_id = reply.meta.request_id, "dropped a reply that nobody waits for");
            return reply.receipt.acknowledge();
        };
        let request_id = reply.meta.request_id.clone();
        let correlation_id = reply.meta.correlation_id.clone();
        let orphan = Orphan { request_id, correlation_id, reply: reply.decode(self.limits).await };
        if let Err(mpsc::error::SendError(orphan)) = orphans.send(orphan).await {
            orphan.reply.receipt.acknowledge();
        }
    }
}
