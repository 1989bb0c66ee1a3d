//! Consuming: subscriptions on one supervised connection, each on its own channel, and the tickets that settle deliveries.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connection::{AsyncSession, Connector, End, Link, LinkState, supervise};
use super::properties::Properties;
pub use super::subscription::{Demand, Subscription};
use super::ticket::{Ledger, flush, keep_ticking};
pub use super::ticket::{Stale, Ticket};
use super::topology::Topology;
use crate::lifecycle::Lifecycle;

/// How long the broker may take to put a consumer in the place of another.
const RESUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last acknowledgements may take to arrive.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// A message received.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from, as its [`Subscription`] names it.
    pub queue: Arc<str>,
    /// The key it was published with.
    pub routing_key: String,
    /// Whether the broker delivered it before, to anyone.
    pub is_redelivered: bool,
    /// Properties and headers, untrusted.
    pub properties: Properties,
    /// Body, untrusted.
    pub body: Bytes,
    /// When it came, however long it then waited to be accepted.
    pub received: Instant,
    /// Settles it.
    pub ticket: Ticket,
}

impl Delivery {
    pub(super) fn of(queue: &Arc<str>, delivery: lapin::message::Delivery, ledger: &Arc<Ledger>) -> Self {
        Self {
            queue: Arc::clone(queue),
            routing_key: delivery.routing_key.as_str().to_owned(),
            is_redelivered: delivery.redelivered,
            properties: Properties::from_lapin(delivery.properties),
            body: delivery.data.into(),
            received: Instant::now(),
            ticket: ledger.ticket(delivery.delivery_tag),
        }
    }
}

/// Takes deliveries. Called one at a time per subscription; while a call waits, that subscription pauses.
pub trait Accept: Send + Sync + 'static {
    /// Takes one delivery and sees to it that its ticket is used.
    fn accept(&self, delivery: Delivery) -> impl Future<Output = ()> + Send;
}

/// A supervised consuming connection; it ends when this is dropped.
#[derive(Debug)]
pub struct ConsumerGroup {
    stop_consuming: CancellationToken,
    lifecycle: Lifecycle,
    state: watch::Receiver<LinkState>,
}

impl ConsumerGroup {
    /// Connects in the background, declares `topology` and consumes, again after every loss of the connection.
    pub fn spawn<A: Accept>(
        connector: Connector,
        role: &'static str,
        topology: Topology,
        subscriptions: Vec<Subscription>,
        accept: Arc<A>,
    ) -> Self {
        let lifecycle = Lifecycle::new();
        let stop_consuming = CancellationToken::new();
        let (state_sender, state) = watch::channel(LinkState::Down(None));
        let session = Session {
            topology,
            subscriptions,
            accept,
            stop_consuming: stop_consuming.clone(),
            lifecycle: lifecycle.clone(),
        };
        lifecycle.spawn(supervise(connector, role, lifecycle.clone(), state_sender, session));
        Self { stop_consuming, lifecycle, state }
    }

    /// The connection's state, for waiting and for showing.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Cancels the consumers and gives deliveries not yet accepted back; tickets can still be used.
    pub fn stop_consuming(&self) {
        self.stop_consuming.cancel();
    }

    /// Closes the connection, at most `grace` from now. Deliveries not settled by then are delivered again.
    pub async fn close(&self, grace: Duration) {
        self.stop_consuming.cancel();
        self.lifecycle.stop();
        self.lifecycle.stopped(grace).await;
    }
}

impl Drop for ConsumerGroup {
    fn drop(&mut self) {
        self.stop_consuming.cancel();
        self.lifecycle.stop();
    }
}

struct Session<A> {
    topology: Topology,
    subscriptions: Vec<Subscription>,
    accept: Arc<A>,
    stop_consuming: CancellationToken,
    lifecycle: Lifecycle,
}

impl<A: Accept> AsyncSession for Session<A> {
    async fn run(&mut self, link: &Link) -> End {
        let waiting = Arc::new(Notify::new());
        let mut consumers = match link.set_up(self.consumers(link, &waiting)).await {
            Ok(Ok(consumers)) => consumers,
            Ok(Err(reason)) => return End::Unusable(reason),
            Err(end) => return end,
        };
        link.announce_up();
        let ledgers: Vec<Arc<Ledger>> =
            consumers.iter().map(|consumer| Arc::clone(&consumer.ledger)).collect();
        // A consumer that ends alone (its queue deleted, its channel closed by the broker) ends the session, so that
        // it comes back with all the others on a fresh connection instead of staying silently absent.
        let ended = CancellationToken::new();
        let (accept, stop, ended, lifecycle) = (&*self.accept, &self.stop_consuming, &ended, &self.lifecycle);
        // Borrowed, not consumed: a channel closes when it is dropped, and with it go the deliveries whose tickets are
        // still out.
        let forwarding = consumers.iter_mut().map(|consumer| async move {
            tokio::select! {
                () = consumer.forward(accept, stop, ended) => {}
                // The owner closes the connection: what is not settled by now is delivered again.
                () = lifecycle.stopping() => {}
            }
            if !stop.is_cancelled() {
                ended.cancel();
            }
        });
        let consuming = async {
            join_all(forwarding).await;
            // After a stop tickets are still out: the connection stays until the owner closes it.
            while stop.is_cancelled() && link.connection.status().connected() && !lifecycle.is_stopping() {
                tokio::select! {
                    () = lifecycle.stopping() => {}
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        };
        tokio::select! {
            () = consuming => {}
            () = keep_ticking(&ledgers, &waiting) => {}
            () = link.gone() => {}
        }
        // The second tick takes what stands behind unfinished deliveries.
        flush(&ledgers);
        flush(&ledgers);
        if link.connection.status().connected() {
            // The broker answers in order: then it has the acknowledgements, whatever becomes of the connection's end.
            let arriving = join_all(consumers.iter().map(Forwarder::sync));
            let _ = tokio::time::timeout(SYNC_TIMEOUT, arriving).await;
        }
        End::Lost
    }
}

impl<A: Accept> Session<A> {
    /// All consumers, of queues that are declared before; or why they cannot be had.
    async fn consumers(&self, link: &Link, waiting: &Arc<Notify>) -> Result<Vec<Forwarder>, String> {
        let declared = self.topology.on_connection(link.generation).declare(&link.connection).await;
        declared.map_err(|error| format!("cannot declare what this process consumes from: {error}"))?;
        let mut consumers = Vec::with_capacity(self.subscriptions.len());
        for subscription in &self.subscriptions {
            let queue = &subscription.queue;
            let consumer = self.subscribe(link, subscription, waiting).await;
            consumers.push(consumer.map_err(|error| {
                format!("cannot consume `{queue}` ({error}); create it with `millrace topology apply`")
            })?);
        }
        Ok(consumers)
    }

    async fn subscribe(
        &self,
        link: &Link,
        subscription: &Subscription,
        waiting: &Arc<Notify>,
    ) -> lapin::Result<Forwarder> {
        let channel = link.connection.create_channel().await?;
        let mut following = subscription.demand.clone();
        let demand = *following.borrow_and_update();
        let declared_as = self.topology.name_on_connection(&subscription.queue, link.generation);
        let stream = consume(&channel, &declared_as, demand, subscription.is_stream).await?;
        let ledger = Ledger::new(channel.clone(), link.generation, demand.prefetch, Arc::clone(waiting));
        Ok(Forwarder {
            channel,
            stream,
            queue: Arc::clone(&subscription.queue),
            declared_as,
            demand,
            following: Some(following),
            ledger,
            received: VecDeque::new(),
            is_stream: subscription.is_stream,
        })
    }
}

async fn consume(
    channel: &lapin::Channel,
    queue: &str,
    demand: Demand,
    is_stream: bool,
) -> lapin::Result<lapin::Consumer> {
    // Counts for consumers that come after it.
    channel.basic_qos(demand.prefetch, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    if demand.priority != 0 {
        arguments.insert("x-priority".into(), AMQPValue::ShortInt(demand.priority));
    }
    if is_stream {
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    }
    channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), arguments).await
}

struct Forwarder {
    channel: lapin::Channel,
    stream: lapin::Consumer,
    /// As its subscription names it.
    queue: Arc<str>,
    /// As the broker does.
    declared_as: String,
    demand: Demand,
    /// `None` once its owner will send nothing more.
    following: Option<watch::Receiver<Demand>>,
    ledger: Arc<Ledger>,
    /// Received and not yet accepted: at most the prefetch, and twice of it while a consumer takes another's place.
    received: VecDeque<Delivery>,
    is_stream: bool,
}

impl Forwarder {
    async fn forward<A: Accept>(&mut self, accept: &A, stop: &CancellationToken, ended: &CancellationToken) {
        #[expect(
            clippy::large_enum_variant,
            reason = "lives for one turn of the loop; a box would be one more allocation"
        )]
        enum Event {
            Stop,
            Came(Option<lapin::Result<lapin::message::Delivery>>),
            Demanded(Option<Demand>),
            Accepted,
        }
        loop {
            if stop.is_cancelled() {
                return self.give_back().await;
            }
            let next = self.received.pop_front();
            let is_accepting = next.is_some();
            let accepting = async {
                match next {
                    Some(delivery) => accept.accept(delivery).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(accepting);
            loop {
                let event = tokio::select! {
                    biased;
                    () = &mut accepting => Event::Accepted,
                    // While a delivery waits to be accepted others are received all the same, to know when they came. One
                    // dropped unaccepted, its ticket unused, is delivered again.
                    () = ended.cancelled() => return,
                    () = stop.cancelled(), if !is_accepting => Event::Stop,
                    came = self.stream.next() => Event::Came(came),
                    // Between two deliveries only, so that former windows do not pile up.
                    demanded = demanded(&mut self.following), if !is_accepting => Event::Demanded(demanded),
                };
                match event {
                    Event::Accepted => break,
                    Event::Stop => return self.give_back().await,
                    Event::Came(Some(Ok(delivery))) => {
                        let delivery = self.convert(delivery);
                        self.received.push_back(delivery);
                        if !is_accepting {
                            break;
                        }
                    }
                    Event::Came(Some(Err(error))) => {
                        return warn!(queue = %self.queue, %error, "consumer failed");
                    }
                    Event::Came(None) => return debug!(queue = %self.queue, "consumer ended"),
                    Event::Demanded(None) => self.following = None,
                    Event::Demanded(Some(demand)) => {
                        let resubscribing = self.resubscribe(demand);
                        match tokio::time::timeout(RESUBSCRIBE_TIMEOUT, resubscribing).await {
                            Ok(Ok(())) => break,
                            Ok(Err(error)) => {
                                return warn!(queue = %self.queue, %error, "cannot consume anew");
                            }
                            Err(_) => return warn!(queue = %self.queue, "no answer to consuming anew"),
                        }
                    }
                }
            }
        }
    }

    /// Puts a consumer with other demands in the place of this one, on the same channel, so that tickets stay good. For a
    /// moment both are served.
    async fn resubscribe(&mut self, demand: Demand) -> lapin::Result<()> {
        debug!(queue = %self.queue, ?demand, "consuming anew");
        let stream = consume(&self.channel, &self.declared_as, demand, false).await?;
        let mut former = std::mem::replace(&mut self.stream, stream);
        self.demand = demand;
        self.ledger.resize(demand.prefetch);
        self.channel.basic_cancel(former.tag(), BasicCancelOptions::default()).await?;
        while let Some(delivery) = former.next().await {
            let delivery = self.convert(delivery?);
            self.received.push_back(delivery);
        }
        Ok(())
    }

    /// Completes when the broker has done everything that was asked of it on this channel; any call that it answers would do.
    async fn sync(&self) {
        if let Err(error) = self.channel.basic_qos(self.demand.prefetch, BasicQosOptions::default()).await {
            debug!(queue = %self.queue, %error, "the last acknowledgements may not have arrived");
        }
    }

    /// Cancels the consumer, then returns what was delivered but not accepted.
    async fn give_back(&mut self) {
        let tag = self.stream.tag();
        if let Err(error) = self.channel.basic_cancel(tag, BasicCancelOptions::default()).await {
            debug!(queue = %self.queue, %error, "cannot cancel the consumer");
            return;
        }
        while let Some(Ok(delivery)) = self.stream.next().await {
            let delivery = self.convert(delivery);
            self.received.push_back(delivery);
        }
        if self.is_stream {
            // Everybody has it anyway, and streams take no negative acknowledgement.
            return self.received.clear();
        }
        while let Some(delivery) = self.received.pop_front() {
            if delivery.ticket.nack().is_err() {
                return;
            }
        }
    }

    fn convert(&self, delivery: lapin::message::Delivery) -> Delivery {
        Delivery::of(&self.queue, delivery, &self.ledger)
    }
}

/// The next demand; `None` when there will be no other.
async fn demanded(following: &mut Option<watch::Receiver<Demand>>) -> Option<Demand> {
    let Some(receiver) = following else { return std::future::pending().await };
    receiver.changed().await.ok()?;
    Some(*receiver.borrow_and_update())
}
