//! What the properties of requests and replies mean (DESIGN's wire contract), read and written in one place.

use std::time::Duration;

use crate::protocol::status::Code;

use super::properties::{OddHeader, Properties};

/// Names of headers on the wire.
pub mod header {
    #![expect(missing_docs, reason = "the names speak; the wire contract in README explains them")]
    /// Stands in for properties that could not be read; its value says why.
    pub const UNREADABLE: &str = crate::amqp::guard::UNREADABLE;
    pub const HEADER_LENGTH: &str = "Inference-Header-Content-Length";
    pub const PUBLISHED_MS: &str = "x-published-ms";
    pub const BUDGET_MS: &str = "x-budget-ms";
    pub const MODEL_VERSION: &str = "x-model-version";
    pub const ATTEMPT: &str = "x-attempt";
    pub const VERSION_HOPS: &str = "x-version-hops";
    pub const REDELIVERIES: &str = "x-redeliveries";
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    pub const TENANT: &str = "x-tenant";
    pub const TRACEPARENT: &str = "traceparent";
    pub const TRACESTATE: &str = "tracestate";
    pub const ACCEPT_DEGRADED: &str = "x-accept-degraded";
    pub const REPLIES_PER_MESSAGE: &str = "x-replies-per-message";
    pub const STATUS: &str = "x-status";
    pub const RETRY_AFTER_MS: &str = "x-retry-after-ms";
    pub const DEGRADED: &str = "x-degraded";
    pub const QUEUE_US: &str = "x-queue-us";
    pub const BATCH_US: &str = "x-batch-us";
    pub const INFER_US: &str = "x-infer-us";
    pub const BATCH_SIZE: &str = "x-batch-size";
    pub const WORKER: &str = "x-worker";
    pub const DEAD_REASON: &str = "x-dead-reason";
    pub const DEAD_DETAIL: &str = "x-dead-detail";
    pub const REDRIVE_OF: &str = "x-redrive-of";
}

/// The AMQP priority that means *urgent* within a tier; any lower or no value means normal.
pub const URGENT: u8 = 5;

/// A reply key: `<user>.<22 or more base64url characters>`. The random part keeps others from guessing it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplyKey {
    key: String,
    user_length: usize,
}

/// A `reply_to` that is not a reply key. Nothing is ever published to such a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`reply_to` is not a reply key (<user>.<22 or more of A-Z a-z 0-9 - _>)")]
pub struct InvalidReplyKey;

impl ReplyKey {
    /// Checks a key received from anyone.
    ///
    /// # Errors
    /// [`InvalidReplyKey`].
    pub fn parse(key: &str) -> Result<Self, InvalidReplyKey> {
        let (user, token) = key.rsplit_once('.').ok_or(InvalidReplyKey)?;
        let user_fits = (1..=64).contains(&user.len())
            && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b));
        let token_fits = (22..=86).contains(&token.len())
            && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if user_fits && token_fits {
            Ok(Self { key: key.to_owned(), user_length: user.len() })
        } else {
            Err(InvalidReplyKey)
        }
    }

    /// A fresh key with 128 random bits.
    ///
    /// # Errors
    /// [`InvalidReplyKey`] when the user's name has characters that no key may have.
    pub fn random(user: &str) -> Result<Self, InvalidReplyKey> {
        use base64::Engine as _;
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        Self::parse(&format!("{user}.{token}"))
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.key
    }

    /// The user part.
    pub fn user(&self) -> &str {
        &self.key[..self.user_length]
    }
}

/// A request's properties, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMeta {
    /// `message_id`, or `correlation_id` in its place.
    pub request_id: String,
    /// The caller's id, returned unchanged.
    pub correlation_id: Option<String>,
    /// `priority` of [`URGENT`] or more.
    pub is_urgent: bool,
    /// Length of the JSON header where the binary extension is used.
    pub header_length: Option<usize>,
    /// When it was published, by the publisher's clock, in milliseconds since the epoch.
    pub published_ms: Option<u64>,
    /// How long the caller waits, counted from publishing.
    pub budget: Option<Duration>,
    /// Whether the broker runs a time to live for it.
    pub has_expiration: bool,
    /// A pinned model version.
    pub model_version: Option<u64>,
    /// Attempts made before this one.
    pub attempt: u32,
    /// The user that the broker vouches for.
    pub user_id: Option<String>,
    /// The tenant that a gateway claims.
    pub claimed_tenant: Option<String>,
    /// Whether a degraded answer is welcome.
    pub accepts_degraded: bool,
    /// Replies that the requester takes in one message, at most.
    pub replies_per_message: u64,
}

/// Properties that cannot be a request's; the caller gets `invalid_input`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Neither `message_id` nor `correlation_id`.
    #[error("neither `message_id` nor `correlation_id` is set")]
    NoIdentity,
    /// A header that cannot be read.
    #[error(transparent)]
    Header(#[from] OddHeader),
}

impl RequestMeta {
    /// The request's identity, also where the rest of its properties cannot be read: `message_id`, else `correlation_id`.
    pub fn identity(properties: &Properties) -> Option<&str> {
        properties.message_id().or_else(|| properties.correlation_id()).filter(|id| !id.is_empty())
    }

    /// Reads a request's properties. `reply_to` is read apart, by [`ReplyKey::parse`]: its failure has another consequence.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn read(properties: &Properties) -> Result<Self, MetaError> {
        let request_id = Self::identity(properties).ok_or(MetaError::NoIdentity)?;
        let count = |name| properties.count(name);
        let version = match properties.count(header::MODEL_VERSION)? {
            Some(0) => {
                return Err(OddHeader {
                    name: header::MODEL_VERSION,
                    expected: "a version, a whole number from 1 up",
                }
                .into());
            }
            version => version,
        };
        Ok(Self {
            request_id: request_id.to_owned(),
            correlation_id: properties.correlation_id().map(str::to_owned),
            is_urgent: properties.priority().is_some_and(|priority| priority >= URGENT),
            header_length: count(header::HEADER_LENGTH)?
                .map(|length| usize::try_from(length).unwrap_or(usize::MAX)),
            published_ms: count(header::PUBLISHED_MS)?,
            budget: count(header::BUDGET_MS)?.map(Duration::from_millis),
            has_expiration: properties.expiration().is_some(),
            model_version: version,
            attempt: count(header::ATTEMPT)?.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            user_id: properties.user_id().map(str::to_owned),
            claimed_tenant: properties.text(header::TENANT)?.map(str::to_owned),
            replies_per_message: count(header::REPLIES_PER_MESSAGE)?.unwrap_or(1),
            accepts_degraded: properties.text(header::ACCEPT_DEGRADED)? != Some("no"),
        })
    }

    /// How long the caller still waits for a request that has waited so long; `None` without a budget.
    pub fn remaining(&self, waited: Duration) -> Option<Duration> {
        Some(self.budget?.saturating_sub(waited))
    }
}

/// Time since the Unix epoch by this machine's clock.
pub fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since the Unix epoch by this machine's clock.
pub fn now_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// What a reply says besides its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyMeta {
    /// The request it answers.
    pub request_id: String,
    /// The caller's id.
    pub correlation_id: Option<String>,
    /// Length of the JSON header where the binary extension is used.
    pub header_length: Option<usize>,
    /// `None` is `ok`.
    pub failure: Option<Code>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Level and reason of a degraded answer.
    pub degraded: Option<String>,
    /// Where the time went.
    pub timing: Timing,
    /// The worker's name.
    pub worker: String,
    /// The version that ran.
    pub model_version: Option<u64>,
    /// Attempts made before the one that answered.
    pub attempt: u32,
}

/// Where a request's time in the worker went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// In the worker's lane, microseconds.
    pub queue_us: u64,
    /// From leaving the lane to the start of the run (batch assembly), microseconds.
    pub batch_us: u64,
    /// The run itself, shared by the batch, microseconds.
    pub infer_us: u64,
    /// Rows in the batch.
    pub batch_size: u64,
}

impl ReplyMeta {
    /// The text of its status.
    pub(super) fn status(&self) -> &'static str {
        self.failure.map_or("ok", Code::as_str)
    }

    pub(super) fn failure_of(status: Option<&str>) -> Option<Code> {
        match status {
            Some("ok") => None,
            code => Some(code.and_then(|code| code.parse().ok()).unwrap_or(Code::BackendError)),
        }
    }

    pub(super) fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    }

    /// The reply's properties: built from nothing, never copied from the request's.
    pub fn write(&self, content_type: &str) -> Properties {
        let mut properties = Properties::persistent()
            .with_message_id(&self.request_id)
            .with_content_type(content_type)
            .with_text(header::STATUS, self.status())
            .with_text(header::WORKER, &self.worker)
            .with_count(header::QUEUE_US, self.timing.queue_us)
            .with_count(header::BATCH_US, self.timing.batch_us)
            .with_count(header::INFER_US, self.timing.infer_us)
            .with_count(header::BATCH_SIZE, self.timing.batch_size)
            .with_count(header::ATTEMPT, self.attempt.into());
        if let Some(id) = &self.correlation_id {
            properties = properties.with_correlation_id(id);
        }
        if let Some(length) = self.header_length {
            properties = properties.with_count(header::HEADER_LENGTH, length as u64);
        }
        if let Some(version) = self.model_version {
            properties = properties.with_count(header::MODEL_VERSION, version);
        }
        if let Some(ms) = self.retry_after_ms() {
            properties = properties.with_count(header::RETRY_AFTER_MS, ms);
        }
        if let Some(degraded) = &self.degraded {
            properties = properties.with_text(header::DEGRADED, degraded);
        }
        properties
    }

    /// Reads a reply's properties; an unknown status reads as [`Code::BackendError`], so that new codes stay failures.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn read(properties: &Properties) -> Result<Self, MetaError> {
        let count = |name| properties.count(name);
        Ok(Self {
            request_id: properties.message_id().ok_or(MetaError::NoIdentity)?.to_owned(),
            correlation_id: properties.correlation_id().map(str::to_owned),
            header_length: count(header::HEADER_LENGTH)?
                .map(|length| usize::try_from(length).unwrap_or(usize::MAX)),
            failure: Self::failure_of(properties.text(header::STATUS)?),
            retry_after: count(header::RETRY_AFTER_MS)?.map(Duration::from_millis),
            degraded: properties.text(header::DEGRADED)?.map(str::to_owned),
            timing: Timing {
                queue_us: count(header::QUEUE_US)?.unwrap_or(0),
                batch_us: count(header::BATCH_US)?.unwrap_or(0),
                infer_us: count(header::INFER_US)?.unwrap_or(0),
                batch_size: count(header::BATCH_SIZE)?.unwrap_or(0),
            },
            worker: properties.text(header::WORKER)?.unwrap_or_default().to_owned(),
            model_version: count(header::MODEL_VERSION)?,
            attempt: count(header::ATTEMPT)?.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_keys_are_strict() {
        let token = "abcdefghijklmnopqrstuv";
        assert!(ReplyKey::parse(&format!("ann.{token}")).is_ok());
        assert_eq!(ReplyKey::random("ann@x.org").unwrap().user(), "ann@x.org");
        for bad in [
            "",
            token,
            "ann.short",
            &format!(".{token}"),
            &format!("ann.{token}#"),
            &format!("a*n.{token}"),
            &format!("ann.{token} "),
            &format!("ann.{}", "x".repeat(87)),
            &format!("{}.{token}", "x".repeat(65)),
            "millrace.request.digits.premium",
            "amq.rabbitmq.reply-to",
        ] {
            assert!(ReplyKey::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn identity_falls_back_and_is_required() {
        let read = |properties: Properties| RequestMeta::read(&properties);
        assert_eq!(read(Properties::new()), Err(MetaError::NoIdentity));
        let meta = read(Properties::new().with_correlation_id("c")).unwrap();
        assert_eq!(meta.request_id, "c");
        assert!(read(Properties::new().with_message_id("m").with_text(header::BUDGET_MS, "soon")).is_err());
        assert!(read(Properties::new().with_message_id("m").with_count(header::MODEL_VERSION, 0)).is_err());
    }

    #[test]
    fn replies_survive_the_wire() {
        let meta = ReplyMeta {
            request_id: "r".into(),
            correlation_id: Some("c".into()),
            header_length: Some(10),
            failure: Some(Code::Overloaded),
            retry_after: Some(Duration::from_millis(5)),
            degraded: Some("cached".into()),
            timing: Timing { queue_us: 1, batch_us: 2, infer_us: 3, batch_size: 4 },
            worker: "w".into(),
            model_version: Some(2),
            attempt: 1,
        };
        assert_eq!(ReplyMeta::read(&meta.write("application/json")), Ok(meta));
    }
}
