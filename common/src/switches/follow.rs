//! Reading the stream of switches, and following what it says.

use std::collections::BTreeMap;
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
/// After so long without a record what a new connection replays is taken for all: what held for a moment long ago must not hold for a
/// moment again. And so long the first one may take.
const REPLAYED: Duration = Duration::from_millis(200);
/// What is replayed is not held back for longer.
const MOST_REPLAYED: Duration = Duration::from_secs(5);
/// The same of records that come later, one by one.
const QUIET: Duration = Duration::from_millis(30);
const MOST_QUIET: Duration = Duration::from_millis(500);
/// Ends are looked at again after so long: the clock that they go by may be set.
const LOOK_EVERY: Duration = Duration::from_secs(10);
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
        let generation = delivery.ticket.generation();
        // The broker vouches for it; an operator without a name is none.
        let by = delivery.properties.user_id().map(str::to_owned);
        match (Record::read(&delivery.body), by) {
            // Without a reader nobody wants it.
            (Ok(record), Some(by)) => drop(self.0.send(Logged { generation, by, record }).await),
            (Ok(_), None) => warn!("a record of the switches has no user_id; nothing of it counts"),
            (Err(reason), by) => {
                warn!(?by, reason, "a record of the switches is no record; nothing of it counts");
            }
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
    /// Whether records came that are not told yet.
    is_reading: watch::Receiver<bool>,
    link: watch::Receiver<LinkState>,
}

impl Follower {
    /// Follows until `lifecycle` stops. While the broker is away what was known holds on, to its end.
    pub fn follow(connector: Connector, settings: &sections::Topology, lifecycle: &Lifecycle) -> Self {
        let mut reader = Reader::open(connector, settings);
        let link = reader.group.state();
        let (sender, hold) = watch::channel(Arc::default());
        let (reading, is_reading) = watch::channel(false);
        let stop = lifecycle.clone();
        lifecycle.spawn(async move {
            tokio::select! {
                () = follow(&mut reader, &sender, &reading) => {}
                () = stop.stopping() => {}
            }
            reader.close().await;
        });
        Self { hold, is_reading, link }
    }

    /// What holds.
    pub fn hold(&self) -> watch::Receiver<Arc<Vec<Entry>>> {
        self.hold.clone()
    }

    /// Waits until what was switched before is known, at most so long.
    pub async fn settled(&self, patience: Duration) {
        let settled = async {
            if wait_up(&mut self.link.clone(), patience).await.is_err() {
                return;
            }
            let mut is_reading = self.is_reading.clone();
            // Records come at once; none is as good an answer.
            let _ = tokio::time::timeout(REPLAYED, is_reading.wait_for(|is_reading| *is_reading)).await;
            let _ = is_reading.wait_for(|is_reading| !is_reading).await;
        };
        let _ = tokio::time::timeout(patience, settled).await;
    }
}

async fn follow(reader: &mut Reader, hold: &watch::Sender<Arc<Vec<Entry>>>, reading: &watch::Sender<bool>) {
    let mut switches = Switches::default();
    let (mut generation, mut is_replay) = (0, true);
    // When what was read is to be told, and when it is to be at the latest.
    let mut due: Option<(Instant, Instant)> = None;
    loop {
        let now = now_ms();
        let change =
            switches.next_change(now).map(|change| Duration::from_millis(change - now).min(LOOK_EVERY));
        let wake = due.map(|(due, latest)| due.min(latest)).or(change.map(|change| Instant::now() + change));
        let waking = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            logged = reader.next() => {
                let Some(Logged { generation: of, by, record }) = logged else { return };
                if of != generation {
                    (switches, generation, is_replay) = (Switches::default(), of, true);
                }
                if let Err(reason) = switches.apply(&record, &by, now_ms()) {
                    warn!(by, reason, "a change of switches is refused, all of it");
                }
                let (quiet, most) = if is_replay { (REPLAYED, MOST_REPLAYED) } else { (QUIET, MOST_QUIET) };
                let latest = due.map_or_else(|| Instant::now() + most, |(_, latest)| latest);
                due = Some((Instant::now() + quiet, latest));
                reading.send_replace(true);
            }
            () = waking => {
                (due, is_replay) = (None, false);
                tell(hold, switches.hold(now_ms()));
                reading.send_replace(false);
            }
        }
    }
}

/// Those that hold, by name.
fn by_name(entries: &[Entry]) -> BTreeMap<String, &Entry> {
    entries.iter().map(|entry| (entry.setting.name(), entry)).collect()
}

fn tell(hold: &watch::Sender<Arc<Vec<Entry>>>, now: Vec<Entry>) {
    let before = hold.borrow().clone();
    if *before == now {
        return;
    }
    let (former, present) = (by_name(&before), by_name(&now));
    for (_, entry) in former.iter().filter(|(name, _)| !present.contains_key(*name)) {
        info!(switch = %entry.setting, by = entry.by, "a switch holds no more");
    }
    for (_, entry) in present.iter().filter(|(name, entry)| former.get(*name) != Some(*entry)) {
        let Entry { setting, until_ms, by, reason, .. } = entry;
        let seconds = until_ms.saturating_sub(now_ms()) / 1000;
        info!(switch = %setting, seconds, by, reason, "a switch holds");
    }
    hold.send_replace(Arc::new(now));
}
