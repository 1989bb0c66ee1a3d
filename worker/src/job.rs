//! A job: one request inside the worker, and the duty to settle its delivery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_common::amqp::consumer::Ticket;
use millrace_common::amqp::message::{ReplyKey, Timing};
use millrace_common::amqp::properties::Properties;
use millrace_common::protocol::codec::{Body, Encoding};
use millrace_common::protocol::status::Code;
use millrace_common::protocol::tensor::Tensor;
use tokio::sync::OwnedSemaphorePermit;

use crate::guard::ladder::Descent;
use crate::schedule::lane::Waiting;

/// Requests that may share a batch agree on it: the sizes of dynamic inner dimensions, input by input; rounded up where the
/// model's inputs are padded.
///
/// Empty for models without such dimensions, so that it costs nothing there. Requests that must run alone have a
/// number of their own instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BatchKey {
    /// Joins others of equal sizes.
    Shared(Box<[i64]>),
    /// Joins other suspects of equal sizes.
    Suspect(Box<[i64]>),
    /// Joins nobody.
    Alone(u64),
}

/// A request that passed admission.
#[derive(Debug)]
pub struct Job {
    /// Settles its delivery, whatever happens.
    pub duty: Duty,
    /// Tier number, highest first.
    pub tier: usize,
    /// Inputs in the signature's order.
    pub inputs: Vec<Tensor>,
    /// Outputs wanted, by number in the signature, and how to write each.
    pub outputs: Vec<(usize, Encoding)>,
    /// The `id` of the request's body.
    pub body_id: Option<String>,
    /// Rows along axis 0; 1 where the model is not batched.
    pub rows: u32,
    /// Who may share a batch with it.
    pub key: BatchKey,
    /// Rows of a batch of its key, at most.
    pub most_rows: u32,
    /// Whether it goes before normal ones of its tenant.
    pub is_urgent: bool,
    /// When nobody waits for it any more.
    pub deadline: Option<Instant>,
}

impl BatchKey {
    /// The key of a request that is suspected of ending the process that runs it.
    #[must_use]
    pub fn suspected(self) -> Self {
        match self {
            Self::Shared(sizes) => Self::Suspect(sizes),
            key => key,
        }
    }
}

impl Waiting for Job {
    type Key = BatchKey;
    type Tenant = Arc<str>;
    fn key(&self) -> &BatchKey {
        &self.key
    }
    fn tenant(&self) -> &Arc<str> {
        &self.duty.tenant
    }
    fn rows(&self) -> u32 {
        self.rows
    }
    fn most_rows(&self) -> u32 {
        self.most_rows
    }
    fn arrived(&self) -> Instant {
        self.duty.arrived
    }
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn is_urgent(&self) -> bool {
        self.is_urgent
    }
}

/// The duty to settle one delivery: answer its caller or pass it on, then acknowledge it.
#[derive(Debug)]
pub struct Duty {
    /// Settles the delivery.
    pub ticket: Ticket,
    /// The request's identity, where it has one.
    pub request_id: Option<String>,
    /// The caller's id.
    pub correlation_id: Option<String>,
    /// Where the answer goes; `None` where nobody asked for one or must not get one.
    pub reply_to: Option<ReplyKey>,
    /// Replies that its requester takes in one message, at most; 0 and 1 are the same.
    pub replies_per_message: u16,
    /// Attempts before this one.
    pub attempt: u32,
    /// How often it has come before, as far as is known.
    pub redeliveries: u64,
    /// Whether it came from the queue of suspects.
    pub is_solo: bool,
    /// The tenant it is accounted to.
    pub tenant: Arc<str>,
    /// When the delivery came.
    pub arrived: Instant,
    /// The message as received, for passing it on.
    pub original: Original,
    /// Whether a degraded answer is welcome.
    pub accepts_degraded: bool,
    /// How far it is down its ladder, if at all.
    pub descent: Option<Descent>,
    /// Its share of the lane's byte budget, given back when the duty is done.
    pub budget: OwnedSemaphorePermit,
}

/// A message as received.
#[derive(Clone, Debug)]
pub struct Original {
    /// Routing key.
    pub routing_key: String,
    /// Properties and headers.
    pub properties: Properties,
    /// Body.
    pub body: Bytes,
}

/// How a duty ends.
#[derive(Debug)]
pub enum Verdict {
    /// Answer the caller.
    Reply(Answer),
    /// Publish it again after a pause, these headers set.
    Retry {
        /// Which of the configured delays, from 0; later ones stay at the last.
        step: usize,
        /// Counting headers to set.
        headers: Vec<(&'static str, u64)>,
    },
    /// To the queue of suspects, where each runs by itself, these headers set.
    Solo {
        /// Counting headers to set.
        headers: Vec<(&'static str, u64)>,
        /// Held until the broker has the acknowledgement too: before that this process takes no suspect.
        moving: OwnedSemaphorePermit,
    },
    /// Keep it for people; the caller, who may be hostile, hears nothing.
    Dead {
        /// One stable word.
        reason: &'static str,
        /// More for people.
        detail: String,
    },
    /// Keep it for people and answer the caller.
    Condemn {
        /// One stable word.
        reason: &'static str,
        /// For the caller.
        answer: Answer,
    },
    /// Not attempted: back to the queue.
    GiveBack,
    /// Its caller has its answer already.
    Done,
}

impl Verdict {
    /// Of a request that its caller has cancelled.
    pub fn cancelled() -> Self {
        Self::Reply(Answer::failure(Code::Cancelled, "cancelled by its caller before it ran"))
    }

    /// Of a request whose requester has no reply queue. If it is back by now, it hears that this one did not run.
    pub fn gone() -> Self {
        Self::Reply(Answer::failure(Code::Unavailable, "not run: its reply queue was gone a moment ago"))
    }

    /// Of a request that ended process after process.
    pub fn poison() -> Self {
        let message = "three times the worker that ran this request, and nothing beside it, ended or lost its connection to the broker";
        Self::Condemn { reason: "poison", answer: Answer::failure(Code::Poison, message) }
    }
}

/// An answer to a caller.
#[derive(Debug)]
pub struct Answer {
    /// `None` is a result.
    pub failure: Option<Code>,
    /// Result or error body.
    pub body: Body,
    /// Where the time went.
    pub timing: Timing,
    /// The version that ran.
    pub model_version: Option<u64>,
    /// When to try again, where that is known.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// A result.
    pub fn result(body: Body) -> Self {
        Self { failure: None, body, timing: Timing::default(), model_version: None, retry_after: None }
    }

    /// A typed refusal or failure.
    pub fn failure(code: Code, message: impl Into<String>) -> Self {
        let error = millrace_common::protocol::status::ErrorBody { error: message.into(), code };
        let bytes = serde_json::to_vec(&error).expect("text serializes");
        Self {
            failure: Some(code),
            body: Body { bytes: bytes.into(), header_length: None },
            timing: Timing::default(),
            model_version: None,
            retry_after: None,
        }
    }
}

/// A duty and its verdict, on the way to being settled.
pub type Settlement = (Duty, Verdict);

/// Whole microseconds, as replies and logs tell them.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
