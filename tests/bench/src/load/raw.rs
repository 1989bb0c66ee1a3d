//! A client of the AMQP library alone: it goes on sending whatever the broker refuses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::message::{ReplyKey, header};
use millrace_common::amqp::topology::{Names, Topology, apply, delete_queue};
use millrace_common::protocol::codec::{Encoding, encode_request};
use millrace_common::tier::Tier;
use millrace_producer::{InferRequest, Parameter};
use tokio::sync::{Semaphore, oneshot};

use super::{Fate, Spec, config, served};

/// Publishes without the broker's word at a time: a client that takes on more only queues them up itself.
const UNCONFIRMED: usize = 512;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Fate>>>>;

pub(super) struct Raw {
    _connections: [Connection; 2],
    connector: Connector,
    reply_queue: String,
    channel: Channel,
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    headers: FieldTable,
    body: Bytes,
    /// How long a reply is awaited.
    patience: Duration,
    skew_ms: i64,
    unconfirmed: Semaphore,
    next: AtomicU64,
    waiting: Waiting,
}

impl Raw {
    pub(super) async fn connect(spec: &Spec) -> Result<Self> {
        let config = config(&spec.url, &spec.prefix, spec.workload)?;
        let names = config.topology.names();
        let connector = Connector::new(&config.broker, "raw")?;
        let user = connector.addresses()[0].user().to_owned();
        let reply_key = ReplyKey::random(&user)?;
        let expires = Duration::from_secs(300);
        apply(&connector, &Topology::reply(&config.topology, reply_key.as_str(), expires)).await?;
        let reply_queue = names.reply_queue(reply_key.as_str());
        let one = Connection::connect(&spec.url, ConnectionProperties::default()).await?;
        let two = Connection::connect(&spec.url, ConnectionProperties::default()).await?;
        let channel = one.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let replies = two.create_channel().await?;
        let replies = replies
            .basic_consume(reply_queue.as_str().into(), "".into(), options, FieldTable::default())
            .await?;
        let waiting = Waiting::default();
        tokio::spawn(receive(replies, Arc::clone(&waiting)));

        let (body, header_length) = body(spec)?;
        let budget_ms = i64::try_from(spec.deadline.as_millis())?;
        let mut headers = FieldTable::default();
        headers.insert(header::BUDGET_MS.into(), AMQPValue::LongLongInt(budget_ms));
        headers.insert(header::HEADER_LENGTH.into(), AMQPValue::LongLongInt(header_length));
        Ok(Self {
            _connections: [one, two],
            connector,
            reply_queue,
            channel,
            exchange: names.request_exchange().into(),
            routing_key: Names::request_key(spec.workload.model.name(), &Tier::new(&spec.tier)?).into(),
            properties: BasicProperties::default()
                .with_delivery_mode(2)
                .with_reply_to(reply_key.as_str().into())
                .with_user_id(user.into())
                .with_content_type("application/octet-stream".into())
                .with_expiration(budget_ms.to_string().into()),
            headers,
            body,
            patience: spec.deadline + spec.give_up,
            skew_ms: spec.skew_ms,
            unconfirmed: Semaphore::new(UNCONFIRMED),
            next: AtomicU64::new(0),
            waiting,
        })
    }

    pub(super) async fn send(&self) -> Fate {
        let Ok(place) = self.unconfirmed.try_acquire() else { return Fate::Unsent };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, replied) = oneshot::channel();
        lock(&self.waiting).insert(number, sender);
        let published = self.publish(number).await;
        drop(place);
        let fate = match published {
            Ok(Confirmation::Ack(None)) => match tokio::time::timeout(self.patience, replied).await {
                Ok(Ok(fate)) => fate,
                _ => Fate::Unanswered,
            },
            Ok(Confirmation::Nack(_)) => Fate::Refused,
            Ok(other) => Fate::Failed(format!("published, but {other:?}")),
            Err(error) => Fate::Failed(error.to_string()),
        };
        lock(&self.waiting).remove(&number);
        fate
    }

    async fn publish(&self, number: u64) -> lapin::Result<Confirmation> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut headers = self.headers.clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let told = i64::try_from(now.as_millis()).unwrap_or(i64::MAX).saturating_add(self.skew_ms);
        headers.insert(header::PUBLISHED_MS.into(), AMQPValue::LongLongInt(told));
        let id = identity(number, now);
        let properties = self.properties.clone().with_message_id(id.into()).with_headers(headers);
        let (exchange, key) = (self.exchange.clone(), self.routing_key.clone());
        self.channel.basic_publish(exchange, key, options, &self.body, properties).await?.await
    }

    pub(super) async fn close(&self) {
        let _ = delete_queue(&self.connector, &self.reply_queue).await;
    }
}

/// Says when it was really sent: process, microseconds since the epoch, number.
fn identity(number: u64, now: Duration) -> String {
    format!("{:08x}-{}-{number}", std::process::id(), now.as_micros())
}

/// When a raw client's request was sent, since the epoch, by its identity; nothing for other clients'.
pub(crate) fn sent(identity: &str) -> Option<Duration> {
    let [_process, micros, _number] = identity.split('-').collect::<Vec<_>>().try_into().ok()?;
    micros.parse().ok().map(Duration::from_micros)
}

fn body(spec: &Spec) -> Result<(Bytes, i64)> {
    let mut request = InferRequest { inputs: vec![spec.workload.tensor()?], ..InferRequest::default() };
    request.parameters.insert(InferRequest::BINARY_DATA_OUTPUT.to_owned(), Parameter::Bool(true));
    let body = encode_request(&request, Encoding::Binary)?;
    let length = body.header_length.context("binary bodies have a header")?;
    Ok((body.bytes, i64::try_from(length)?))
}

async fn receive(mut replies: Consumer, waiting: Waiting) {
    while let Some(Ok(delivery)) = replies.next().await {
        let id = delivery.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
        let number = id.rsplit('-').next().and_then(|number| number.parse().ok());
        let sender = number.and_then(|number: u64| lock(&waiting).remove(&number));
        if let Some(sender) = sender {
            let _ = sender.send(fate(&delivery));
        }
    }
}

fn fate(delivery: &Delivery) -> Fate {
    let count = |name| match value(delivery, name) {
        Some(AMQPValue::LongLongInt(count)) => count.unsigned_abs(),
        _ => 0,
    };
    match value(delivery, header::STATUS) {
        Some(AMQPValue::LongString(status)) => match status.to_string().as_str() {
            "ok" => {
                let stages = [header::QUEUE_US, header::BATCH_US, header::INFER_US].map(count);
                served(stages.iter().sum(), stages[2], count(header::BATCH_SIZE))
            }
            "deadline_exceeded" => Fate::Expired,
            "overloaded" => Fate::Refused,
            other => Fate::Failed(other.to_owned()),
        },
        other => Fate::Failed(format!("a reply with the status {other:?}")),
    }
}

fn value(delivery: &Delivery, name: &str) -> Option<AMQPValue> {
    delivery.properties.headers().as_ref()?.inner().get(name).cloned()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
