//! The raw AMQP echo: the client library at its best with the same bytes, queue types and durability both ways.
//!
//! Publishes overlap so that frames are gathered; confirms are awaited off the path; acknowledgements are cumulative.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use millrace_harness::broker::Broker;
use millrace_harness::process::Process;

use crate::cpu::Meter;

const IN_FLIGHT: usize = 512;
const REPLY_QUEUE: &str = "echo.reply";
/// Acknowledge at least after this many deliveries.
const ACK_EVERY: u64 = 32;

/// Round trips a second, and CPU microseconds of each over all processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo {
    pub(crate) rate: f64,
    pub(crate) cpu_us: f64,
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

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> bool {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id("0192b3c4-0000-7000-8000-000000000000".into())
        .with_correlation_id("0192b3c4".into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    match channel.basic_publish("".into(), queue.into(), options, body, properties).await {
        Ok(confirm) => confirm.await.is_ok_and(|confirmation| confirmation.is_ack()),
        Err(_) => false,
    }
}

fn acknowledge(channel: &Channel, tag: u64) {
    let options = lapin::options::BasicAckOptions { multiple: true };
    let _ = channel.basic_ack(tag, options).now_or_never();
}

/// The other end: sends everything back, acknowledges once that is confirmed.
pub(crate) async fn serve(url: &str, queue: &str) -> Result<()> {
    let Ends { publishing, consuming, mut consumer, _connections } = connect(url, queue).await?;
    println!("ready");
    let mut replies = FuturesUnordered::new();
    let mut prefix = Prefix::default();
    loop {
        tokio::select! {
            delivery = consumer.next() => {
                let delivery = delivery.context("the consumer ended")??;
                let publishing = &publishing;
                replies.push(async move {
                    publish(publishing, REPLY_QUEUE, &delivery.data).await;
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

/// Measures round trips of `bytes` bytes for `duration`, after a second of warm-up.
pub(crate) async fn measure(
    broker: &Broker,
    queue_type: &str,
    bytes: usize,
    duration: Duration,
) -> Result<Echo> {
    let url = broker.amqp_url();
    let queue = format!("echo.request.{queue_type}");
    declare(&url, &queue, queue_type).await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["echo-server", &url, &queue]);
    let mut server = Process::spawn(command)?;
    server.wait_for_line("ready", Duration::from_secs(20))?;
    let Ends { publishing, consuming, mut consumer, _connections } = connect(&url, REPLY_QUEUE).await?;
    let body = vec![7u8; bytes];
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
            open.push(publish(&publishing, &queue, &body));
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

async fn declare(url: &str, queue: &str, queue_type: &str) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for (name, kind) in [(queue, queue_type), (REPLY_QUEUE, "classic")] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        if kind == "classic" && name != REPLY_QUEUE {
            arguments.insert("x-max-priority".into(), AMQPValue::LongLongInt(1));
        }
        channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await?;
        channel.queue_purge(name.into(), lapin::options::QueuePurgeOptions::default()).await?;
    }
    connection.close(200, "OK".into()).await?;
    Ok(())
}
