//! A plain AMQP client, as somebody else's program would be: it knows the wire contract and nothing of our library.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde_json::Value;

/// One connection, one channel in confirm mode, one reply queue.
pub struct Foreign {
    _connection: Connection,
    channel: Channel,
    replies: Option<Consumer>,
    prefix: String,
    reply_key: String,
}

impl Foreign {
    /// Connects, binds a reply queue and consumes it.
    pub async fn connect(amqp_url: &str, prefix: &str) -> Self {
        let mut foreign = Self::idle(amqp_url, prefix).await;
        foreign.listen().await;
        foreign
    }

    /// Connects and binds a reply queue, in which replies wait until [`Foreign::listen`].
    pub async fn idle(amqp_url: &str, prefix: &str) -> Self {
        Self::with_key(amqp_url, prefix, &format!("guest.{}", uuid::Uuid::new_v4().simple())).await
    }

    /// As [`Foreign::idle`], with the reply queue of an earlier connection, or with somebody else's.
    pub async fn with_key(amqp_url: &str, prefix: &str, reply_key: &str) -> Self {
        let connection =
            Connection::connect(amqp_url, ConnectionProperties::default()).await.expect("a broker");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let foreign = Self {
            _connection: connection,
            channel,
            replies: None,
            prefix: prefix.to_owned(),
            reply_key: reply_key.to_owned(),
        };
        foreign.bind_reply_queue().await;
        foreign
    }

    async fn bind_reply_queue(&self) {
        let queue = format!("{}.{}", self.prefix, self.reply_queue());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        self.channel
            .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await
            .expect("a reply queue");
        let exchange = format!("{}.reply", self.prefix);
        self.channel
            .queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                self.reply_key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("a binding");
    }

    /// Consumes the reply queue from now on.
    pub async fn listen(&mut self) {
        let queue = format!("{}.{}", self.prefix, self.reply_queue());
        let replies = self
            .channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await;
        self.replies = Some(replies.expect("a consumer"));
    }

    /// Where its replies go.
    pub fn reply_key(&self) -> &str {
        &self.reply_key
    }

    /// The name of its reply queue, without the prefix.
    pub fn reply_queue(&self) -> String {
        format!("reply.{}", self.reply_key)
    }

    /// Properties of a proper request.
    pub fn properties(&self) -> BasicProperties {
        BasicProperties::default()
            .with_message_id(uuid::Uuid::new_v4().to_string().into())
            .with_reply_to(self.reply_key.as_str().into())
            .with_delivery_mode(2)
    }

    /// Publishes to `<prefix>.request`.
    pub async fn publish(&self, key: &str, properties: BasicProperties, body: &[u8]) -> Confirmation {
        self.publish_to(&format!("{}.request", self.prefix), key, properties, body).await
    }

    /// Publishes to any exchange; the default one is `""`.
    pub async fn publish_to(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Confirmation {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange: ShortString = exchange.into();
        let confirm = self.channel.basic_publish(exchange, key.into(), options, body, properties).await;
        confirm.expect("published").await.expect("confirmed")
    }

    /// Publishes a proper request that the broker must take, and returns its id.
    pub async fn request(&self, key: &str, body: &[u8]) -> String {
        self.request_with(key, self.properties(), body).await
    }

    /// As [`Foreign::request`], with properties that have a `message_id`.
    pub async fn request_with(&self, key: &str, properties: BasicProperties, body: &[u8]) -> String {
        let id = properties.message_id().clone().expect("a message_id").to_string();
        assert_eq!(self.publish(key, properties, body).await, Confirmation::Ack(None), "{key}");
        id
    }

    /// The next reply, acknowledged.
    pub async fn reply(&mut self, timeout: Duration) -> Option<Answer> {
        let replies = self.replies.as_mut().expect("it listens");
        let delivery = tokio::time::timeout(timeout, replies.next()).await.ok()??.expect("a delivery");
        delivery.acker.ack(BasicAckOptions::default()).await.expect("an acknowledgement");
        Some(Answer::of(&delivery))
    }

    /// Awaits an answer to each of these requests. Answers that come twice count in the second number, as every client
    /// of an at-least-once service must expect; what answers nothing is a failure.
    pub async fn answers(&mut self, ids: &[String], timeout: Duration) -> (BTreeMap<String, Answer>, usize) {
        let deadline = Instant::now() + timeout;
        let mut answers = BTreeMap::new();
        let mut repeated = 0;
        while answers.len() < ids.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(answer) = self.reply(left).await else {
                panic!("{} of {} answered within {timeout:?}", answers.len(), ids.len());
            };
            assert!(ids.contains(&answer.id), "an answer to nothing: {answer:?}");
            repeated += usize::from(answers.insert(answer.id.clone(), answer).is_some());
        }
        (answers, repeated)
    }

    /// Replies that the broker has sent by now and nobody has taken.
    pub async fn leftovers(&mut self) -> Vec<Answer> {
        // The broker answers in order: what it had delivered before lies here when the answer comes.
        self.depth(&self.reply_queue()).await;
        let replies = self.replies.as_mut().expect("it listens");
        let mut left = Vec::new();
        while let Some(Some(delivery)) = replies.next().now_or_never() {
            left.push(Answer::of(&delivery.expect("a delivery")));
        }
        left
    }

    /// Takes one message from a queue, if there is one.
    pub async fn get(&self, queue: &str) -> Option<Delivery> {
        let queue = format!("{}.{queue}", self.prefix);
        let options = BasicGetOptions { no_ack: true };
        let got = self.channel.basic_get(queue.as_str().into(), options).await.expect("the queue exists");
        got.map(|message| message.delivery)
    }

    /// Has a copy of what an exchange gets under such keys put into a queue of this connection; returns the queue's name without the prefix.
    pub async fn tap(&self, exchange: &str, pattern: &str) -> String {
        self.bind(exchange, pattern, FieldTable::default()).await
    }

    /// Binds a queue that refuses whatever comes.
    pub async fn bind_full(&self, exchange: &str, pattern: &str) {
        let mut full = FieldTable::default();
        full.insert("x-max-length".into(), AMQPValue::LongInt(0));
        full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        self.bind(exchange, pattern, full).await;
    }

    async fn bind(&self, exchange: &str, pattern: &str, mut arguments: FieldTable) -> String {
        let tap = format!("tap.{}", uuid::Uuid::new_v4().simple());
        let (queue, exchange) = (format!("{}.{tap}", self.prefix), format!("{}.{exchange}", self.prefix));
        let options = QueueDeclareOptions::durable();
        arguments.insert("x-expires".into(), AMQPValue::LongInt(60_000));
        self.channel.queue_declare(queue.as_str().into(), options, arguments).await.expect("a queue");
        let options = QueueBindOptions::default();
        let key = pattern.into();
        let binding = self.channel.queue_bind(
            queue.as_str().into(),
            exchange.as_str().into(),
            key,
            options,
            FieldTable::default(),
        );
        binding.await.expect("a binding");
        tap
    }

    /// Declares a queue with arguments that nobody of ours gives one.
    pub async fn declare_otherwise(&self, queue: &str) {
        let queue = format!("{}.{queue}", self.prefix);
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(12_345));
        let options = QueueDeclareOptions::durable();
        self.channel.queue_declare(queue.as_str().into(), options, arguments).await.expect("a queue");
    }

    /// Deletes a queue.
    pub async fn delete(&self, queue: &str) {
        let queue = format!("{}.{queue}", self.prefix);
        let deleted = self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await;
        deleted.expect("the queue may be deleted");
    }

    /// Messages ready in a queue.
    pub async fn depth(&self, queue: &str) -> u32 {
        let queue = format!("{}.{queue}", self.prefix);
        let options = QueueDeclareOptions::durable().passive();
        let declared =
            self.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await;
        declared.expect("the queue exists").message_count()
    }
}

/// A reply as its receiver reads it, by the wire contract alone.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The request it answers.
    pub id: String,
    /// `x-status`.
    pub status: String,
    /// `x-worker`.
    pub worker: String,
    /// `x-model-version`; empty when absent.
    pub version: String,
    /// The JSON body; null where it is not JSON.
    pub body: Value,
}

impl Answer {
    fn of(delivery: &Delivery) -> Self {
        let header = |name| text_header(delivery, name);
        Self {
            id: delivery.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string),
            status: header("x-status"),
            worker: header("x-worker"),
            version: header("x-model-version"),
            body: serde_json::from_slice(&delivery.data).unwrap_or_default(),
        }
    }

    /// The first output's elements.
    pub fn data(&self) -> &Value {
        &self.body["outputs"][0]["data"]
    }

    /// Checks that it is a result of one row of this value, four times.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_row(&self, value: f32) {
        assert_eq!(
            (self.status.as_str(), self.data()),
            ("ok", &serde_json::json!(vec![value; 4])),
            "{self:?}"
        );
    }
}

/// A header of a delivery as text; empty when absent.
pub fn text_header(delivery: &Delivery, name: &str) -> String {
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::LongLongInt(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

/// Adds a header.
pub fn with_header(properties: BasicProperties, name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(name.into(), value);
    properties.with_headers(headers)
}

/// A JSON request for a model that takes `x`, FP32 `[batch, 4]`.
pub fn rows(rows: &[[f32; 4]]) -> Vec<u8> {
    let data: Vec<f32> = rows.iter().flatten().copied().collect();
    let input = serde_json::json!({"name": "x", "datatype": "FP32", "shape": [rows.len(), 4], "data": data});
    serde_json::json!({ "inputs": [input] }).to_string().into_bytes()
}
