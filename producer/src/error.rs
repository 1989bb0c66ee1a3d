//! What can go wrong for a caller.
//!
//! The kinds answer the question that matters: may the request have run? *Refused* and *not sent*: no. *Unknown outcome*:
//! perhaps, and it may still. *Failed*: it came to a worker, which said why there is no result.

use std::time::Duration;

use millrace_common::config::load::ConfigError;
use millrace_common::protocol::status::Code;
use millrace_common::protocol::tensor::{Datatype, TensorError};

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request contradicts itself; nothing was sent.
    #[error("the request cannot be sent: {0}")]
    Invalid(#[from] RequestError),
    /// The broker refused it: it is in no queue. It will not run; where it was sent again because its pack had failed, it may have.
    #[error("refused ({code}): {message}")]
    Refused {
        /// [`Code::Overloaded`] (the tier's queue is full, or this client has more to publish than the broker takes), [`Code::UnknownModel`] (no such queue),
        /// [`Code::Unauthorized`] (the broker's user may not use the tier) or [`Code::TooLarge`] (for the broker).
        code: Code,
        /// More for people.
        message: String,
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// Nobody knows whether it is in a queue: the connection ended before the broker's answer, again and again until the
    /// deadline. It may run; its result will be dropped.
    #[error("unknown outcome: {reason}")]
    UnknownOutcome {
        /// What happened.
        reason: String,
    },
    /// The deadline passed. Mostly the broker had taken the request; it may still run, its result will be dropped.
    #[error("deadline exceeded: no reply within {budget:?}")]
    DeadlineExceeded {
        /// How long the caller was ready to wait.
        budget: Duration,
    },
    /// A worker answered that there is no result.
    #[error("failed ({code}): {message}")]
    Failed {
        /// The stable code.
        code: Code,
        /// The worker's text.
        message: String,
        /// When to try again, where that may help.
        retry_after: Option<Duration>,
        /// The worker that answered.
        worker: String,
    },
    /// A reply that is not what the protocol says; the worker or something between is broken.
    #[error("malformed reply: {reason}")]
    MalformedReply {
        /// What is wrong with it.
        reason: String,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// The stable code, as a gateway would answer it.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(RequestError::TooLarge { .. }) => Code::TooLarge,
            Self::Invalid(_) => Code::InvalidInput,
            Self::Refused { code, .. } | Self::Failed { code, .. } => *code,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::UnknownOutcome { .. } | Self::Closed => Code::Unavailable,
            Self::MalformedReply { .. } => Code::BackendError,
        }
    }

    /// Whether sending the same request again may give a result.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.code(),
            Code::Overloaded
                | Code::RateLimited
                | Code::Unavailable
                | Code::DeadlineExceeded
                | Code::BackendTimeout
        )
    }
}

/// A request or response whose parts do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A name outside `[A-Za-z0-9_-]{1,64}`.
    #[error(transparent)]
    Name(#[from] millrace_common::tier::InvalidName),
    /// A tier that the configuration does not have.
    #[error("there is no tier `{tier}`; the configuration has {known}")]
    UnknownTier {
        /// The tier asked for.
        tier: String,
        /// The tiers there are.
        known: String,
    },
    /// A tensor whose bytes, shape and datatype disagree.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// Tensor name.
        name: String,
        /// What is wrong.
        source: TensorError,
    },
    /// No output of this name in the response.
    #[error("the response has no output `{0}`")]
    NoOutput(String),
    /// The output has another datatype than asked for.
    #[error("output `{name}` is {actual}, not {wanted}")]
    Datatype {
        /// Output name.
        name: String,
        /// What it is.
        actual: Datatype,
        /// What was asked for.
        wanted: Datatype,
    },
    /// Larger than `limits.max_body_bytes`.
    #[error("the request has {bytes} bytes, limits.max_body_bytes is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A correlation id that AMQP cannot carry.
    #[error("the correlation id has {bytes} bytes, the limit is 255")]
    CorrelationId {
        /// Its size.
        bytes: usize,
    },
    /// BYTES that are not text, in JSON.
    #[error("{0}")]
    Encoding(String),
}

/// Why a client cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] millrace_common::amqp::connection::ConnectError),
    /// The broker did not answer in time.
    #[error("no connection to the broker within {0:?}")]
    Timeout(Duration),
    /// The topology could not be declared.
    #[error(transparent)]
    Topology(#[from] millrace_common::amqp::topology::ApplyError),
    /// A reply key that is malformed or another user's.
    #[error(
        "the reply key `{key}` cannot be used by `{user}`: it must be `{user}.` and 22 to 86 of A-Z a-z 0-9 - _"
    )]
    ReplyKey {
        /// The key.
        key: String,
        /// The broker's user.
        user: String,
    },
    /// The broker user's name cannot be part of a reply key.
    #[error(
        "the broker user `{user}` cannot be used: a reply key may hold A-Z a-z 0-9 _ - . @ and at most 64 of them"
    )]
    User {
        /// The user.
        user: String,
    },
}
