//! Single messages on demand, over a connection of its own: for queues from which nothing may be held that is not worked on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicGetOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::warn;

use super::connection::{AsyncSession, Connector, End, Link, LinkState, supervise};
use super::consumer::Delivery;
use super::ticket::{Ledger, flush, keep_ticking};
use crate::lifecycle::Lifecycle;

/// How long the broker may take for an answer, before another connection is tried.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// How long the last acknowledgements may take to arrive.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to a connection that fetches. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Depth(Arc<str>, oneshot::Sender<u32>),
    Fetch(Arc<str>, oneshot::Sender<Option<Delivery>>),
}

impl Fetcher {
    /// Connects in the background, again after every loss of the connection, until `lifecycle` stops.
    pub fn spawn(connector: Connector, role: &'static str, lifecycle: &Lifecycle) -> Self {
        let (requests, incoming) = mpsc::channel(1);
        // Whoever asks waits for the connection.
        let (state, _) = watch::channel(LinkState::Down(None));
        let session = Session { incoming, missing: HashSet::new(), lifecycle: lifecycle.clone() };
        lifecycle.spawn(supervise(connector, role, lifecycle.clone(), state, session));
        Self { requests }
    }

    /// Messages ready in a queue; `None` when there is no such queue, or the connection ended meanwhile.
    pub async fn depth(&self, queue: &Arc<str>) -> Option<u32> {
        let (answer, depth) = oneshot::channel();
        self.requests.send(Request::Depth(Arc::clone(queue), answer)).await.ok()?;
        depth.await.ok()
    }

    /// The next message of a queue; `None` when there is none, or the connection ended meanwhile. Not cancel safe: what was fetched
    /// for somebody who is gone goes back, and counts as delivered.
    pub async fn fetch(&self, queue: &Arc<str>) -> Option<Delivery> {
        let (answer, delivery) = oneshot::channel();
        self.requests.send(Request::Fetch(Arc::clone(queue), answer)).await.ok()?;
        delivery.await.ok()?
    }
}

struct Session {
    incoming: mpsc::Receiver<Request>,
    /// Queues that people were told of.
    missing: HashSet<Arc<str>>,
    lifecycle: Lifecycle,
}

impl AsyncSession for Session {
    async fn run(&mut self, link: &Link) -> End {
        let Ok(channel) = open(link).await else { return End::Lost };
        let waiting = Arc::new(Notify::new());
        // Each acknowledgement is sent at once.
        let ledger = Ledger::new(channel.clone(), link.generation, 1, Arc::clone(&waiting));
        let ledgers = [Arc::clone(&ledger)];
        link.announce_up();
        let lifecycle = self.lifecycle.clone();
        let end = tokio::select! {
            end = self.answer_all(link, &channel, &ledger) => end,
            () = keep_ticking(&ledgers, &waiting) => End::Lost,
            () = lifecycle.stopping() => End::Lost,
            () = link.gone() => End::Lost,
        };
        // The second tick takes what stands behind unfinished deliveries.
        flush(&ledgers);
        flush(&ledgers);
        // The broker answers in order: then it has the acknowledgements.
        let _ = timeout(SYNC_TIMEOUT, channel.basic_qos(1, BasicQosOptions::default())).await;
        end
    }
}

impl Session {
    async fn answer_all(&mut self, link: &Link, channel: &Channel, ledger: &Arc<Ledger>) -> End {
        // A channel ends with the first question after a queue that does not exist, and what was fetched on it goes back.
        let Ok(mut asking) = open(link).await else { return End::Lost };
        while let Some(request) = self.incoming.recv().await {
            match request {
                // Asked before the connection was lost, and given up.
                Request::Fetch(_, answer) if answer.is_closed() => {}
                Request::Depth(_, answer) if answer.is_closed() => {}
                Request::Depth(queue, answer) => match depth(&asking, &queue).await {
                    Ok(depth) => {
                        self.missing.remove(&queue);
                        // Whoever asked may have gone meanwhile; so below.
                        let _ = answer.send(depth);
                    }
                    Err(reason) if link.connection.status().connected() => {
                        if self.missing.insert(Arc::clone(&queue)) {
                            warn!(%queue, reason, "cannot look into a queue; create what is missing with `millrace topology apply`");
                        }
                        let Ok(opened) = open(link).await else { return End::Lost };
                        asking = opened;
                    }
                    Err(_) => return End::Lost,
                },
                Request::Fetch(queue, answer) => {
                    let getting = channel.basic_get((&*queue).into(), BasicGetOptions::default());
                    let Ok(Ok(got)) = timeout(ANSWERED_WITHIN, getting).await else { return End::Lost };
                    let delivery = got.map(|message| Delivery::of(&queue, message.delivery, ledger));
                    if let Err(Some(unwanted)) = answer.send(delivery) {
                        // Stale only if it comes again anyway.
                        let _ = unwanted.ticket.nack();
                    }
                }
            }
        }
        // Nobody will ask any more; what was fetched is still to be settled.
        std::future::pending().await
    }
}

async fn open(link: &Link) -> Result<Channel, String> {
    answered(link.connection.create_channel()).await
}

async fn depth(channel: &Channel, queue: &Arc<str>) -> Result<u32, String> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declaring = channel.queue_declare((&**queue).into(), options, FieldTable::default());
    Ok(answered(declaring).await?.message_count())
}

async fn answered<T>(asking: impl Future<Output = lapin::Result<T>>) -> Result<T, String> {
    match timeout(ANSWERED_WITHIN, asking).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {ANSWERED_WITHIN:?}")),
    }
}
