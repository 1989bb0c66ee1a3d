//! A verdict to the message that carries it out. Plain code.

use std::sync::Arc;

use millrace_common::amqp::bundle;
use millrace_common::amqp::message::{ReplyKey, ReplyMeta, header};
use millrace_common::amqp::publisher::Message;
use millrace_common::amqp::topology::Names;

use crate::job::{Answer, Duty};

/// The names that messages are addressed with.
#[derive(Clone, Debug)]
pub struct Dispatch {
    reply_exchange: Arc<str>,
    dead_exchange: Arc<str>,
    solo_exchange: Arc<str>,
    retry_exchanges: Vec<Arc<str>>,
    worker: String,
    user: String,
}

impl Dispatch {
    /// `retry_delays_ms` as configured, ascending and not empty.
    ///
    /// `user` is the broker user that the messages are published as.
    pub fn new(names: &Names, retry_delays_ms: &[u64], worker: &str, user: &str) -> Self {
        Self {
            reply_exchange: names.reply_exchange().into(),
            dead_exchange: names.dead().into(),
            solo_exchange: names.solo_exchange().into(),
            retry_exchanges: retry_delays_ms.iter().map(|&delay| names.retry(delay).into()).collect(),
            worker: worker.to_owned(),
            user: user.to_owned(),
        }
    }

    fn meta(&self, duty: &Duty, answer: &Answer) -> ReplyMeta {
        ReplyMeta {
            request_id: duty.request_id.clone().unwrap_or_default(),
            correlation_id: duty.correlation_id.clone(),
            header_length: answer.body.header_length,
            failure: answer.failure,
            retry_after: answer.retry_after,
            degraded: duty.descent.as_ref().map(|descent| descent.label.to_string()),
            timing: answer.timing,
            worker: self.worker.clone(),
            model_version: answer.model_version,
            attempt: duty.attempt.saturating_add(u32::try_from(duty.redeliveries).unwrap_or(u32::MAX)),
        }
    }

    /// The reply.
    pub fn reply(&self, duty: &Duty, reply_to: &ReplyKey, answer: &Answer) -> Message {
        Message {
            exchange: Arc::clone(&self.reply_exchange),
            routing_key: reply_to.as_str().to_owned(),
            properties: self.meta(duty, answer).write(answer.body.content_type()),
            body: answer.body.bytes.clone(),
            mandatory: true,
        }
    }

    /// Replies to one requester in one message.
    pub fn bundle(&self, reply_to: &ReplyKey, replies: &[(Duty, Answer)]) -> Message {
        let parts = replies.iter().map(|(duty, answer)| (self.meta(duty, answer), answer.body.bytes.clone()));
        let (properties, body) = bundle::write(&self.worker, &parts.collect::<Vec<_>>());
        Message {
            exchange: Arc::clone(&self.reply_exchange),
            routing_key: reply_to.as_str().to_owned(),
            properties,
            body,
            mandatory: true,
        }
    }

    /// The request again, for the retry step `step`; the last step where there are fewer.
    pub fn retry(&self, duty: &Duty, step: usize, headers: &[(&'static str, u64)]) -> Message {
        let last = self.retry_exchanges.len() - 1;
        self.again(&self.retry_exchanges[step.min(last)], duty, headers)
    }

    /// The request again, for the queue of suspects.
    pub fn solo(&self, duty: &Duty, headers: &[(&'static str, u64)]) -> Message {
        self.again(&self.solo_exchange, duty, headers)
    }

    fn again(&self, exchange: &Arc<str>, duty: &Duty, headers: &[(&'static str, u64)]) -> Message {
        let mut properties = duty
            .original
            .properties
            .for_republishing()
            .with_text(header::TENANT, &duty.tenant)
            .with_user_id(&self.user);
        for (name, value) in headers {
            properties = properties.with_count(name, *value);
        }
        Message {
            exchange: Arc::clone(exchange),
            routing_key: duty.original.routing_key.clone(),
            properties,
            body: duty.original.body.clone(),
            mandatory: true,
        }
    }

    /// The request as received, for people, with the reason.
    pub fn dead(&self, duty: &Duty, reason: &str, detail: &str) -> Message {
        let properties = duty
            .original
            .properties
            .for_republishing()
            .with_text(header::DEAD_REASON, reason)
            .with_text(header::DEAD_DETAIL, detail)
            .with_text(header::WORKER, &self.worker);
        Message {
            exchange: Arc::clone(&self.dead_exchange),
            routing_key: duty.original.routing_key.clone(),
            properties,
            body: duty.original.body.clone(),
            mandatory: true,
        }
    }
}
