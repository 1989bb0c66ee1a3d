//! A request on its way out: checked and encoded once, addressed anew each time it is published.

use std::sync::Arc;

use millrace_common::amqp::message::{ReplyKey, URGENT, header, now_ms};
use millrace_common::amqp::properties::{MAX_PROPERTY_BYTES, Properties};
use millrace_common::amqp::publisher::Message;
use millrace_common::amqp::topology::Names;
use millrace_common::config::sections::TierSettings;
use millrace_common::protocol::codec::{Body, Encoding, encode_request};
use millrace_common::protocol::request::{InferRequest, Parameter};
use millrace_common::tier::check_name;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::RequestError;
use crate::request::Request;

/// What a request's message is made of, each time it is published.
pub(crate) struct Outgoing {
    pub(crate) id: String,
    pub(crate) routing_key: String,
    body: Body,
    correlation_id: Option<String>,
    version: Option<u64>,
    is_urgent: bool,
    refuses_degraded: bool,
    replies_per_message: u16,
    /// Whether the broker chooses the queue by the tenant. Only then it is told: a header costs it time.
    is_sharded: bool,
}

/// Where a request goes.
pub(crate) struct Route {
    pub(crate) key: String,
    is_sharded: bool,
}

impl Route {
    /// That of a request, its parts checked.
    pub(crate) fn of(request: &Request, config: &Config) -> Result<Self, RequestError> {
        let tier = tier(request.tier.as_deref(), config)?;
        check_name(&request.model)?;
        Ok(Self { key: Names::request_key(&request.model, &tier.name), is_sharded: tier.shards > 1 })
    }
}

impl Outgoing {
    /// Checks and encodes a request that goes there, and gives it an id.
    pub(crate) fn prepare(request: Request, route: Route, config: &Config) -> Result<Self, RequestError> {
        let body = encode(request.body, request.encoding)?;
        let limit = config.limits.max_body_bytes;
        if body.bytes.len() > limit {
            return Err(RequestError::TooLarge { bytes: body.bytes.len(), limit });
        }
        if let Some(id) = request.correlation_id.as_ref().filter(|id| id.len() > MAX_PROPERTY_BYTES) {
            return Err(RequestError::CorrelationId { bytes: id.len() });
        }
        Ok(Self {
            id: uuid::Uuid::now_v7().to_string(),
            routing_key: route.key,
            body,
            correlation_id: request.correlation_id,
            version: request.version,
            is_urgent: request.is_urgent,
            refuses_degraded: request.refuses_degraded,
            replies_per_message: config.requests.replies_per_message,
            is_sharded: route.is_sharded,
        })
    }

    /// Of its body.
    pub(crate) fn bytes(&self) -> usize {
        self.body.bytes.len()
    }

    /// The message as published now, with what is left of the time until the deadline.
    pub(crate) fn message(&self, exchange: &Arc<str>, reply_key: &ReplyKey, deadline: Instant) -> Message {
        let budget = deadline.saturating_duration_since(Instant::now());
        let budget_ms = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut properties = Properties::persistent()
            .with_message_id(&self.id)
            .with_reply_to(reply_key.as_str())
            .with_user_id(reply_key.user())
            .with_content_type(self.body.content_type())
            .with_expiration(&budget_ms.min(u64::from(u32::MAX)).to_string())
            .with_count(header::PUBLISHED_MS, now_ms())
            .with_count(header::BUDGET_MS, budget_ms);
        if let Some(length) = self.body.header_length {
            properties = properties.with_count(header::HEADER_LENGTH, length as u64);
        }
        if self.replies_per_message > 1 {
            properties = properties.with_count(header::REPLIES_PER_MESSAGE, self.replies_per_message.into());
        }
        if let Some(id) = &self.correlation_id {
            properties = properties.with_correlation_id(id);
        }
        if let Some(version) = self.version {
            properties = properties.with_count(header::MODEL_VERSION, version);
        }
        if self.is_urgent {
            properties = properties.with_priority(URGENT);
        }
        if self.refuses_degraded {
            properties = properties.with_text(header::ACCEPT_DEGRADED, "no");
        }
        if self.is_sharded {
            properties = properties.with_text(header::TENANT, reply_key.user());
        }
        Message {
            exchange: Arc::clone(exchange),
            routing_key: self.routing_key.clone(),
            properties,
            body: self.body.bytes.clone(),
            mandatory: true,
        }
    }
}

fn tier<'a>(name: Option<&str>, config: &'a Config) -> Result<&'a TierSettings, RequestError> {
    let name = name.unwrap_or_else(|| config.requests.tier.as_str());
    let tiers = &config.topology.tiers;
    if let Some(tier) = tiers.iter().find(|tier| tier.name.as_str() == name) {
        return Ok(tier);
    }
    check_name(name)?;
    let known: Vec<&str> = tiers.iter().map(|tier| tier.name.as_str()).collect();
    Err(RequestError::UnknownTier { tier: name.to_owned(), known: known.join(", ") })
}

/// Binary requests want binary answers, unless they say otherwise.
fn encode(mut body: InferRequest, encoding: Encoding) -> Result<Body, RequestError> {
    if encoding == Encoding::Binary {
        body.parameters.entry(InferRequest::BINARY_DATA_OUTPUT.to_owned()).or_insert(Parameter::Bool(true));
    }
    for tensor in &body.inputs {
        tensor.check().map_err(|source| RequestError::Tensor { name: tensor.name.clone(), source })?;
    }
    encode_request(&body, encoding).map_err(|error| RequestError::Encoding(error.to_string()))
}
