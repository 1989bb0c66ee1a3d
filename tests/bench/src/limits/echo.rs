//! The raw AMQP echo: the client library at its best with the same messages, queue arguments and durability both ways.
//!
//! Publishes overlap so that frames are gathered; confirms are awaited off the path; acknowledgements are cumulative. Messages
//! go through the default exchange, the broker's shortest way. With [`Payload::Bare`] they have the same bodies and next to
//! no properties, with [`Payload::Same`] they are the fleet's own, byte by byte.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::topology::{QueueKind, Topology, apply};
use millrace_common::config::sections::Topology as Settings;
use millrace_harness::broker::Broker;
use millrace_harness::process::Process;

use super::sample::{Message, Sample};
use crate::cpu::Meter;

const IN_FLIGHT: usize = 512;
/// The reply that the other end sends, for it to take.
const TEMPLATE_QUEUE: &str = "echo.template";
/// Acknowledge at least after this many deliveries.
const ACK_EVERY: u64 = 32;

/// Round trips a second, and CPU microseconds of each over all processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo {
    pub(crate) rate: f64,
    pub(crate) cpu_us: f64,
}

/// What the echo's messages carry beside the fleet's bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// An id.
    Bare,
    /// The fleet's own properties and headers.
    Same,
}

impl Payload {
    fn of(self, message: &Message) -> Message {
        let bare = || {
            BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id("0192b3c4-0000-7000-8000-000000000000".into())
        };
        let properties = if self == Self::Bare { bare() } else { message.properties.clone() };
        Message { properties, body: message.body.clone() }
    }
}

/// Acknowledges the contiguous prefix of finished deliveries at once.
#[derive(Default)]
struct Prefix {
    done: BTreeSet<u64>,
    acked: u64,
}

impl Prefix {
    /// The tag to acknowledge with everything before it, once enough are done or `flush` is asked.
    fn finish(&mut self, tag: u64, flush: bool) -> Option<u64> {
        self.done.insert(tag);
        let mut last = self.acked;
        while self.done.contains(&(last + 1)) {
            last += 1;
        }
        if last == self.acked || (!flush && last - self.acked < ACK_EVERY) {
            return None;
        }
        self.done = self.done.split_off(&(last + 1));
        self.acked = last;
        Some(last)
    }
}

struct Ends {
    _connections: [Connection; 2],
    publishing: Channel,
    consuming: Channel,
    consumer: Consumer,
}

async fn connect(url: &str, queue: &str) -> Result<Ends> {
    let properties = ConnectionProperties::default;
    let one = Connection::connect(url, properties()).await?;
    let two = Connection::connect(url, properties()).await?;
    let publishing = one.create_channel().await?;
    publishing.confirm_select(ConfirmSelectOptions::default()).await?;
    let consuming = two.create_channel().await?;
    consuming.basic_qos(1000, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = consuming.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok(Ends { _connections: [one, two], publishing, consuming, consumer })
}

async fn publish(channel: &Channel, queue: &str, message: &Message) -> bool {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = message.properties.clone();
    match channel.basic_publish("".into(), queue.into(), options, &message.body, properties).await {
        Ok(confirm) => confirm.await.is_ok_and(|confirmation| confirmation.is_ack()),
        Err(_) => false,
    }
}

fn acknowledge(channel: &Channel, tag: u64) {
    let options = lapin::options::BasicAckOptions { multiple: true };
    let _ = channel.basic_ack(tag, options).now_or_never();
}

/// The other end: answers everything, acknowledges once the answer is confirmed.
pub(crate) async fn serve(url: &str, queue: &str, reply_queue: &str) -> Result<()> {
    let Ends { publishing, consuming, mut consumer, _connections } = connect(url, queue).await?;
    // Not on the consuming channel: what is fetched counts as a delivery, and acknowledgements go by their number.
    let template = publishing.basic_get(TEMPLATE_QUEUE.into(), BasicGetOptions { no_ack: true }).await?;
    let template = template.context("no reply to send")?.delivery;
    let reply = Message { properties: template.properties, body: template.data };
    println!("ready");
    let mut replies = FuturesUnordered::new();
    let mut prefix = Prefix::default();
    loop {
        tokio::select! {
            delivery = consumer.next() => {
                let delivery = delivery.context("the consumer ended")??;
                let (publishing, reply) = (&publishing, &reply);
                replies.push(async move {
                    publish(publishing, reply_queue, reply).await;
                    delivery.delivery_tag
                });
            }
            Some(tag) = replies.next() => {
                if let Some(tag) = prefix.finish(tag, replies.is_empty()) {
                    acknowledge(&consuming, tag);
                }
            }
        }
    }
}

/// Measures round trips for `duration`, after a second of warm-up.
pub(crate) async fn measure(
    broker: &Broker,
    queue_type: QueueKind,
    sample: &Sample,
    payload: Payload,
    duration: Duration,
) -> Result<Echo> {
    let url = broker.amqp_url();
    let (queue, reply_queue) = declare(&url, queue_type).await?;
    let Ends { publishing, consuming, mut consumer, _connections } = connect(&url, &reply_queue).await?;
    publish(&publishing, TEMPLATE_QUEUE, &payload.of(&sample.reply)).await;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["echo-server", &url, &queue, &reply_queue]);
    let mut server = Process::spawn(command)?;
    server.wait_for_line("ready", Duration::from_secs(20))?;
    let request = payload.of(&sample.request);
    let pids = [std::process::id(), server.pid(), u32::try_from(broker.process().pid())?];
    let mut open = FuturesUnordered::new();
    let mut prefix = Prefix::default();
    let (mut outstanding, mut count) = (0usize, 0u64);
    let mut started = Instant::now();
    let mut meter = Meter::start(&pids);
    let mut is_warm = false;
    loop {
        if !is_warm && started.elapsed() > Duration::from_secs(1) {
            (is_warm, count, started, meter) = (true, 0, Instant::now(), Meter::start(&pids));
        } else if is_warm && started.elapsed() > duration {
            break;
        }
        while outstanding < IN_FLIGHT {
            open.push(publish(&publishing, &queue, &request));
            outstanding += 1;
        }
        tokio::select! {
            Some(confirmed) = open.next() => anyhow::ensure!(confirmed, "the broker did not take a message"),
            delivery = consumer.next() => {
                let delivery = delivery.context("the consumer ended")??;
                outstanding -= 1;
                count += 1;
                if let Some(tag) = prefix.finish(delivery.delivery_tag, false) {
                    acknowledge(&consuming, tag);
                }
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu: Duration = meter.stop().iter().sum();
    server.kill()?;
    Ok(Echo { rate: count as f64 / seconds, cpu_us: cpu.as_secs_f64() * 1e6 / count.max(1) as f64 })
}

/// Queues with the arguments that the fleet's have; returns the names of those for requests and for replies.
async fn declare(url: &str, queue_type: QueueKind) -> Result<(String, String)> {
    let settings = Settings { prefix: format!("echo-{queue_type}"), queue_type, ..Settings::default() };
    let mut topology = Topology::shared(&settings);
    topology.extend(Topology::model(&settings, "echo"));
    topology.extend(Topology::reply(&settings, "guest.echo", Duration::from_secs(300)));
    let broker =
        millrace_common::config::sections::Broker { addresses: vec![url.parse()?], ..Default::default() };
    apply(&Connector::new(&broker, "echo")?, &topology).await?;
    let names = settings.names();
    let queues = (names.request_queue("echo", &settings.tiers[0].name), names.reply_queue("guest.echo"));
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let plain = QueueDeclareOptions::durable();
    channel.queue_declare(TEMPLATE_QUEUE.into(), plain, FieldTable::default()).await?;
    for queue in [&queues.0, &queues.1, TEMPLATE_QUEUE] {
        channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
    }
    connection.close(200, "OK".into()).await?;
    Ok(queues)
}
