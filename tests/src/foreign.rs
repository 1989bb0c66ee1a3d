//! A plain AMQP client, as somebody else's program would be: it knows the wire contract and nothing of our library.

use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};

use futures_util::StreamExt;
use std::time::Duration;

/// One connection, one channel in confirm mode, one reply queue.
pub struct Foreign {
    _connection: Connection,
    channel: Channel,
    replies: Consumer,
    prefix: String,
    reply_key: String,
}

impl Foreign {
    /// Connects and binds a reply queue.
    pub async fn connect(amqp_url: &str, prefix: &str) -> Self {
        let connection =
            Connection::connect(amqp_url, ConnectionProperties::default()).await.expect("a broker");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let reply_key = format!("guest.{}", uuid::Uuid::new_v4().simple());
        let queue = format!("{prefix}.reply.{reply_key}");
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        channel
            .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await
            .expect("a reply queue");
        let exchange = format!("{prefix}.reply");
        channel
            .queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                reply_key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("a binding");
        let replies = channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("a consumer");
        Self { _connection: connection, channel, replies, prefix: prefix.to_owned(), reply_key }
    }

    /// Where its replies go.
    pub fn reply_key(&self) -> &str {
        &self.reply_key
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
        let exchange: ShortString = format!("{}.request", self.prefix).into();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self.channel.basic_publish(exchange, key.into(), options, body, properties).await;
        confirm.expect("published").await.expect("confirmed")
    }

    /// The next reply, acknowledged.
    pub async fn reply(&mut self, timeout: Duration) -> Option<Delivery> {
        let delivery = tokio::time::timeout(timeout, self.replies.next()).await.ok()??.expect("a delivery");
        delivery.acker.ack(BasicAckOptions::default()).await.expect("an acknowledgement");
        Some(delivery)
    }

    /// Takes one message from a queue, if there is one.
    pub async fn get(&self, queue: &str) -> Option<Delivery> {
        let queue = format!("{}.{queue}", self.prefix);
        let options = BasicGetOptions { no_ack: true };
        let got = self.channel.basic_get(queue.as_str().into(), options).await.expect("the queue exists");
        got.map(|message| message.delivery)
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

/// A text header of a delivery; empty when absent.
pub fn text_header(delivery: &Delivery, name: &str) -> String {
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}
