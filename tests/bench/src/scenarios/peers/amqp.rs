//! The client of the peers behind the broker. It is the raw echo's, not Python's: a Python client would need more of the two
//! cores than the worker that is measured.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use millrace_common::amqp::topology::QueueKind;

use super::closed_loop::{Figures, Processes, Tally};
use crate::limits::sample::Message;

/// Replies acknowledged at once.
const ACK_EVERY: u64 = 32;
const ANSWER: Duration = Duration::from_secs(30);
/// Priorities of a queue that has any: the fewest that two tiers need, since each costs the broker something.
pub(super) const MAX_PRIORITY: u8 = 1;
const PREMIUM: Option<u8> = Some(MAX_PRIORITY);
const FREE: Option<u8> = Some(0);

/// Where answers come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyQueue {
    /// Survives the broker and is acknowledged, as the fleet's.
    Durable,
    /// Ends with its client and needs no acknowledgements, as Celery's `rpc://`.
    Transient,
}

/// A client with a reply queue of its own.
pub(super) struct Client {
    _connections: [Connection; 2],
    publishing: Channel,
    consuming: Channel,
    consumer: Consumer,
    queue: String,
    reply_queue: String,
    replies: ReplyQueue,
    request: Message,
    last_id: u64,
    /// When each was meant to be sent.
    waiting: HashMap<u64, Instant>,
}

/// What became of two tiers' requests.
pub(super) struct Flooded {
    /// Latencies of premium's, from their intended times, ascending; all were answered.
    pub(super) premium: Vec<Duration>,
    /// Answers within the time of sending.
    pub(super) answers: usize,
    /// Latencies of free's that were answered by the end, ascending.
    pub(super) free: Vec<Duration>,
}

impl Client {
    pub(super) async fn connect(
        url: &str,
        queue: &str,
        replies: ReplyQueue,
        request: Message,
    ) -> Result<Self> {
        let one = Connection::connect(url, ConnectionProperties::default()).await?;
        let two = Connection::connect(url, ConnectionProperties::default()).await?;
        let publishing = one.create_channel().await?;
        publishing.confirm_select(ConfirmSelectOptions::default()).await?;
        let consuming = two.create_channel().await?;
        consuming.basic_qos(1000, BasicQosOptions::default()).await?;
        let reply_queue = format!("{queue}.replies");
        consuming.queue_delete(reply_queue.as_str().into(), QueueDeleteOptions::default()).await?;
        let declare = match replies {
            ReplyQueue::Durable => QueueDeclareOptions::durable(),
            ReplyQueue::Transient => QueueDeclareOptions::exclusive(),
        };
        consuming.queue_declare(reply_queue.as_str().into(), declare, FieldTable::default()).await?;
        let no_ack = replies == ReplyQueue::Transient;
        let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
        let consumer = consuming
            .basic_consume(reply_queue.as_str().into(), "".into(), options, FieldTable::default())
            .await?;
        Ok(Self {
            _connections: [one, two],
            publishing,
            consuming,
            consumer,
            queue: queue.to_owned(),
            reply_queue,
            replies,
            request,
            last_id: 0,
            waiting: HashMap::new(),
        })
    }

    /// One request's answer.
    pub(super) async fn ask(&mut self) -> Result<Vec<u8>> {
        let publish = self.next(Instant::now(), None);
        ensure!(publish.await, "the broker did not take a request");
        let delivery = tokio::time::timeout(ANSWER, self.consumer.next()).await;
        let delivery = delivery.context("no answer")?.context("the consumer ended")??;
        self.take(&delivery);
        Ok(delivery.data)
    }

    /// Keeps `in_flight` requests under way for `duration`, after a second of warm-up.
    pub(super) async fn load(
        &mut self,
        in_flight: usize,
        processes: Processes,
        duration: Duration,
    ) -> Result<Figures> {
        let mut confirms = FuturesUnordered::new();
        let mut tally = Tally::start(processes, duration);
        loop {
            while self.waiting.len() < in_flight {
                confirms.push(self.next(Instant::now(), None));
            }
            tokio::select! {
                Some(confirmed) = confirms.next() => ensure!(confirmed, "the broker did not take a request"),
                delivery = self.consumer.next() => {
                    let delivery = delivery.context("the consumer ended")??;
                    if let Some((_, latency)) = self.take(&delivery) && !tally.count(latency) {
                        break;
                    }
                }
            }
        }
        let figures = tally.finish();
        // One that was not polled yet was not sent either.
        while let Some(confirmed) = confirms.next().await {
            ensure!(confirmed, "the broker did not take a request");
        }
        Ok(figures)
    }

    /// Waits until nothing is under way any more.
    pub(super) async fn settle(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            let delivery = tokio::time::timeout(ANSWER, self.consumer.next()).await;
            self.take(&delivery.context("no answer")?.context("the consumer ended")??);
        }
        Ok(())
    }

    /// Sends both tiers' requests at their times, whatever the answers do, for so long, and waits for premium's answers.
    pub(super) async fn flood(
        &mut self,
        premium: impl Iterator<Item = Duration>,
        free: impl Iterator<Item = Duration>,
        length: Duration,
    ) -> Result<Flooded> {
        let mut arrivals: Vec<_> = premium.map(|at| (at, PREMIUM)).chain(free.map(|at| (at, FREE))).collect();
        arrivals.sort_unstable();
        let mut due = arrivals.into_iter().peekable();
        let (start, mut urgent, mut confirms) = (Instant::now(), HashSet::new(), FuturesUnordered::new());
        let mut flooded = Flooded { premium: Vec::new(), answers: 0, free: Vec::new() };
        while due.peek().is_some() || !urgent.is_empty() {
            while let Some((at, priority)) = due.next_if(|(at, _)| start.elapsed() >= *at) {
                confirms.push(self.next(start + at, priority));
                if priority == PREMIUM {
                    urgent.insert(self.last_id);
                }
            }
            let next = due.peek().map_or(length + ANSWER, |(at, _)| *at);
            tokio::select! {
                () = tokio::time::sleep_until((start + next).into()) => if due.peek().is_none() {
                    bail!("{} premium requests have no answer", urgent.len());
                },
                Some(confirmed) = confirms.next() => ensure!(confirmed, "the broker did not take a request"),
                delivery = self.consumer.next() => {
                    let delivery = delivery.context("the consumer ended")??;
                    let Some((id, latency)) = self.take(&delivery) else { continue };
                    let tier = if urgent.remove(&id) { &mut flooded.premium } else { &mut flooded.free };
                    tier.push(latency);
                    flooded.answers += usize::from(start.elapsed() < length);
                }
            }
        }
        flooded.premium.sort_unstable();
        flooded.free.sort_unstable();
        Ok(flooded)
    }

    /// The publish of the next request, meant for that time; ready once it is confirmed.
    fn next(&mut self, intended: Instant, priority: Option<u8>) -> impl Future<Output = bool> + use<> {
        self.last_id += 1;
        self.waiting.insert(self.last_id, intended);
        let (id, Message { mut properties, body }) = (format!("{:032x}", self.last_id), self.request.clone());
        // Celery's id stands in headers too.
        if let Some(mut headers) = properties.headers().clone().filter(|table| table.contains_key("root_id"))
        {
            for name in ["id", "root_id"] {
                headers.insert(name.into(), AMQPValue::LongString(id.as_str().into()));
            }
            properties = properties.with_headers(headers);
        }
        if let Some(priority) = priority {
            properties = properties.with_priority(priority);
        }
        let properties =
            properties.with_correlation_id(id.into()).with_reply_to(self.reply_queue.as_str().into());
        let (channel, queue) = (self.publishing.clone(), self.queue.clone());
        async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            match channel.basic_publish("".into(), queue.into(), options, &body, properties).await {
                Ok(confirm) => confirm.await.is_ok_and(|confirmation| confirmation.is_ack()),
                Err(_) => false,
            }
        }
    }

    /// Whose answer it is and how long it took; none for one that nobody waits for.
    fn take(&mut self, delivery: &Delivery) -> Option<(u64, Duration)> {
        if self.replies == ReplyQueue::Durable && delivery.delivery_tag.is_multiple_of(ACK_EVERY) {
            let ack = self.consuming.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true });
            let _ = ack.now_or_never();
        }
        let id = delivery.properties.correlation_id().as_ref()?;
        let id = u64::from_str_radix(id.as_str(), 16).ok()?;
        self.waiting.remove(&id).map(|intended| (id, intended.elapsed()))
    }
}

/// An empty, durable queue of that type, with so many priorities.
pub(super) async fn declare(
    url: &str,
    queue: &str,
    queue_type: QueueKind,
    max_priority: Option<u8>,
) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.to_string().into()));
    if let Some(priority) = max_priority {
        arguments.insert("x-max-priority".into(), AMQPValue::LongInt(priority.into()));
    }
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    connection.close(200, "OK".into()).await?;
    Ok(())
}

/// Deletes a queue with what waits in it.
pub(super) async fn delete(url: &str, queue: &str) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    Ok(connection.close(200, "OK".into()).await?)
}

/// Takes the only message of a queue.
pub(super) async fn take(url: &str, queue: &str) -> Result<Message> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await?;
    let delivery = got.with_context(|| format!("{queue} holds no message"))?.delivery;
    connection.close(200, "OK".into()).await?;
    Ok(Message { properties: delivery.properties, body: delivery.data })
}
