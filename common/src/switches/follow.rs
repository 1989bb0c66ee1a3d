//! Reading the stream of switches, and following what it says.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Entry, Record, Switches};
use crate::amqp::connection::{Connector, Generation, LinkState, wait_up};
use crate::amqp::consumer::{Accept, ConsumerGroup, Delivery, Subscription};
use crate::amqp::message::now_ms;
use crate::amqp::topology::Topology;
use crate::config::sections;
use crate::lifecycle::Lifecycle;

/// Records on their way to a reader; the broker sends no more before some are acknowledged.
const PREFETCH: u16 = 100;
/// Records taken and not yet read.
const WAITING: usize = 100;
/// After so long without a record what was read is taken for all: what is replayed comes faster, and what held for a moment long ago
/// must not hold for a moment again.
const QUIET: Duration = Duration::from_millis(30);
/// What is read is not held back for longer.
const MOST_QUIET: Duration = Duration::from_millis(300);
/// How long a reader's connection may take to close.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// A record of the stream.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The connection that it came over: each one begins at the beginning.
    pub generation: Generation,
    /// The broker user that wrote it.
    pub by: String,
    /// The record.
    pub record: Record,
}

/// Reads the stream from its beginning, and goes on as it grows.
#[derive(Debug)]
pub struct Reader {
    records: mpsc::Receiver<Logged>,
    group: ConsumerGroup,
}

struct Taker(mpsc::Sender<Logged>);

impl Accept for Taker {
    async fn accept(&self, delivery: Delivery) {
        let (generation, by) =
            (delivery.ticket.generation(), delivery.properties.user_id().unwrap_or("-").to_owned());
        match Record::read(&delivery.body) {
            // Without a reader nobody wants it.
            Ok(record) => drop(self.0.send(Logged { generation, by, record }).await),
            Err(reason) => warn!(by, reason, "a record of the switches is no record; nothing of it counts"),
        }
        // Stale, it comes again with all the others.
        let _ = delivery.ticket.ack();
    }
}

impl Reader {
    /// Reads in the background, over a connection of its own.
    pub fn open(connector: Connector, settings: &sections::Topology) -> Self {
        let (sender, records) = mpsc::channel(WAITING);
        let subscription = Subscription::stream(settings.names().switches(), PREFETCH);
        let topology = Topology::default();
        let group = ConsumerGroup::spawn(
            connector,
            "switches",
            topology,
            vec![subscription],
            Arc::new(Taker(sender)),
        );
        Self { records, group }
    }

    /// The next record; after a lost connection all come again, in a new generation.
    pub async fn next(&mut self) -> Option<Logged> {
        self.records.recv().await
    }

    /// Everything that is there: until nothing more comes for `quiet`.
    ///
    /// # Errors
    /// Why the stream cannot be read.
    pub async fn all(&mut self, quiet: Duration) -> Result<Vec<Logged>, String> {
        let mut all: Vec<Logged> = Vec::new();
        if let Err(error) = wait_up(&mut self.group.state(), quiet * 10).await {
            return Err(
                error.map_or_else(|| "the broker does not answer".to_owned(), |error| error.to_string())
            );
        }
        while let Ok(Some(logged)) = tokio::time::timeout(quiet, self.next()).await {
            if all.last().is_some_and(|last| last.generation != logged.generation) {
                all.clear();
            }
            all.push(logged);
        }
        Ok(all)
    }

    /// Stops reading.
    pub async fn close(&self) {
        self.group.close(CLOSED_WITHIN).await;
    }
}

/// What holds, from moment to moment.
#[derive(Debug)]
pub struct Follower {
    hold: watch::Receiver<Arc<Vec<Entry>>>,
    link: watch::Receiver<LinkState>,
}

impl Follower {
    /// Follows until `lifecycle` stops. While the broker is away what was known holds on, to its end.
    pub fn follow(connector: Connector, settings: &sections::Topology, lifecycle: &Lifecycle) -> Self {
        let reader = Reader::open(connector, settings);
        let link = reader.group.state();
        let (sender, hold) = watch::channel(Arc::default());
        let stop = lifecycle.clone();
        lifecycle.spawn(async move {
            let mut reader = reader;
            tokio::select! {
                () = follow(&mut reader, &sender) => {}
                () = stop.stopping() => {}
            }
            reader.close().await;
        });
        Self { hold, link }
    }

    /// What holds.
    pub fn hold(&self) -> watch::Receiver<Arc<Vec<Entry>>> {
        self.hold.clone()
    }

    /// Waits until what was switched before is known, at most so long.
    pub async fn settled(&self, patience: Duration) {
        let settled = async {
            if wait_up(&mut self.link.clone(), patience).await.is_ok() {
                // Records come at once; none is as good an answer.
                let _ = tokio::time::timeout(QUIET * 3, self.hold.clone().changed()).await;
            }
        };
        let _ = tokio::time::timeout(patience, settled).await;
    }
}

async fn follow(reader: &mut Reader, hold: &watch::Sender<Arc<Vec<Entry>>>) {
    let mut switches = Switches::default();
    let mut generation = 0;
    // When what was read is to be told, and when it is to be at the latest.
    let mut due: Option<(Instant, Instant)> = None;
    loop {
        let now = now_ms();
        let end = switches.next_end(now).map(|end| Instant::now() + Duration::from_millis(end - now));
        let wake = match (due, end) {
            (Some((due, latest)), _) => Some(due.min(latest)),
            (None, end) => end,
        };
        let waking = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            logged = reader.next() => {
                let Some(Logged { generation: of, by, record }) = logged else { return };
                if of != generation {
                    (switches, generation) = (Switches::default(), of);
                }
                if let Err(reason) = switches.apply(&record, &by, now_ms()) {
                    warn!(by, reason, "a change of switches is refused, all of it");
                }
                let latest = due.map_or_else(|| Instant::now() + MOST_QUIET, |(_, latest)| latest);
                due = Some((Instant::now() + QUIET, latest));
            }
            () = waking => {
                due = None;
                tell(hold, switches.hold(now_ms()));
            }
        }
    }
}

fn tell(hold: &watch::Sender<Arc<Vec<Entry>>>, now: Vec<Entry>) {
    let before = hold.borrow().clone();
    if *before == now {
        // Whoever waits for the first word has it all the same.
        return hold.send_modify(|_| {});
    }
    for entry in
        before.iter().filter(|entry| !now.iter().any(|other| other.setting.name() == entry.setting.name()))
    {
        info!(switch = %entry.setting, by = entry.by, "a switch holds no more");
    }
    for Entry { setting, until_ms, by, reason, .. } in now.iter().filter(|entry| !before.contains(entry)) {
        let seconds = until_ms.saturating_sub(now_ms()) / 1000;
        info!(switch = %setting, seconds, by, reason, "a switch holds");
    }
    hold.send_replace(Arc::new(now));
}
