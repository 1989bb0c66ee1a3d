//! One request and its reply as they pass through the broker, for the echo to repeat.

use anyhow::{Context, Result};
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use millrace_producer::{Client, Request};

/// A message without its address.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

/// What a request and its reply consist of, byte by byte.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) request: Message,
    pub(crate) reply: Message,
}

impl Sample {
    /// Sends one request and copies it and its reply on their way, by queues of its own on the same exchanges.
    pub(crate) async fn take(
        url: &str,
        client: &Client,
        request: Request,
        routing_key: &str,
    ) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let names = client.names();
        let requests = Tap::open(&channel, &names.request_exchange(), routing_key).await?;
        let replies = Tap::open(&channel, &names.reply_exchange(), client.reply_key()).await?;
        client.infer(request).await?;
        let sample = Self { request: requests.close(&channel).await?, reply: replies.close(&channel).await? };
        connection.close(200, "OK".into()).await?;
        Ok(sample)
    }
}

/// A queue beside the real one.
struct Tap {
    queue: String,
    exchange: String,
    key: String,
}

impl Tap {
    async fn open(channel: &Channel, exchange: &str, key: &str) -> Result<Self> {
        let tap = Self { queue: format!("tap.{exchange}"), exchange: exchange.into(), key: key.into() };
        let (queue, exclusive) = (tap.queue.as_str(), QueueDeclareOptions::exclusive());
        channel.queue_declare(queue.into(), exclusive, FieldTable::default()).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await?;
        Ok(tap)
    }

    async fn close(self, channel: &Channel) -> Result<Message> {
        let (queue, exchange, key) = (self.queue.as_str(), self.exchange.as_str(), self.key.as_str());
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await?;
        let delivery = got.context("the request and its reply have passed, but no copy is here")?.delivery;
        channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await?;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(Message { properties: delivery.properties, body: delivery.data })
    }
}
