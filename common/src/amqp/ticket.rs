//! Tickets, and the ledger of a channel that settles them. The only place that acknowledges.
//!
//! A ledger acknowledges the longest finished prefix of its deliveries at once: on a quorum queue every acknowledgement is
//! an entry of the replicated log, so single ones cost the broker more than the messages do. Hence a finished delivery waits
//! for others, at most a tick. What then still stands behind an unfinished one waits for one tick more and is acknowledged
//! alone: one slow request must not hold the others' places in the prefetch window.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::Notify;

use super::connection::Generation;

/// How long a finished delivery may wait for its acknowledgement.
const TICK: Duration = Duration::from_millis(5);
/// A prefix of this many, or of half the prefetch window, is acknowledged without waiting for the tick.
const ENOUGH: usize = 64;

/// The duty to settle one delivery. Dropping it settles nothing: the broker delivers the message again later.
#[derive(Debug)]
#[must_use = "a delivery that is not settled comes again when the connection ends"]
pub struct Ticket {
    ledger: Arc<Ledger>,
    tag: u64,
}

/// The delivery's connection or channel is gone: the broker will deliver the message again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "delivery of connection generation {generation} can no longer be settled; the broker delivers it again"
)]
pub struct Stale {
    /// The generation that received it.
    pub generation: Generation,
}

impl Ticket {
    /// The message is done with; something else holds the duty to answer now. Written within milliseconds.
    ///
    /// # Errors
    /// [`Stale`] when it can only be delivered again.
    pub fn ack(self) -> Result<(), Stale> {
        self.ledger.check()?;
        self.ledger.finish(self.tag);
        Ok(())
    }

    /// The message was not attempted: back to the queue for anyone.
    ///
    /// # Errors
    /// [`Stale`] when it can only be delivered again.
    pub fn nack(self) -> Result<(), Stale> {
        self.ledger.check()?;
        self.ledger.give_back(self.tag);
        Ok(())
    }

    /// The connection that its delivery came over.
    pub fn generation(&self) -> Generation {
        self.ledger.generation
    }

    /// Whether its connection or channel is gone, so that it can no longer be settled.
    pub fn is_stale(&self) -> bool {
        self.ledger.check().is_err()
    }
}

/// Ticks ledgers for ever, whenever one of them has something waiting.
pub(super) async fn keep_ticking(ledgers: &[Arc<Ledger>], waiting: &Notify) {
    loop {
        waiting.notified().await;
        tokio::time::sleep(TICK).await;
        if flush(ledgers) {
            waiting.notify_one();
        }
    }
}

/// One tick of every ledger. Returns whether anything still waits.
pub(super) fn flush(ledgers: &[Arc<Ledger>]) -> bool {
    let waiting = ledgers.iter().filter(|ledger| ledger.tick());
    waiting.count() > 0
}

/// The deliveries of one channel that are not settled yet. Tags count from 1.
#[derive(Debug)]
pub(super) struct Ledger {
    channel: Channel,
    generation: Generation,
    book: Mutex<Book>,
    /// Tells the session that something waits for a tick.
    waiting: Arc<Notify>,
}

/// Which deliveries are finished. Plain data: what to send is returned.
#[derive(Debug)]
struct Book {
    /// A prefix so long does not wait for the tick.
    enough: usize,
    /// Everything up to here is settled.
    settled: u64,
    /// Finished since the last tick, or standing behind unfinished ones.
    finished: BTreeSet<u64>,
    /// Settled out of order: the prefix passes over them.
    passed: BTreeSet<u64>,
    /// Finished before the last tick.
    overdue: BTreeSet<u64>,
}

impl Book {
    fn new(prefetch: u16) -> Self {
        Self {
            enough: Self::enough(prefetch),
            settled: 0,
            finished: BTreeSet::new(),
            passed: BTreeSet::new(),
            overdue: BTreeSet::new(),
        }
    }

    fn enough(prefetch: u16) -> usize {
        ENOUGH.min(usize::from(prefetch) / 2).max(1)
    }

    /// Moves over the prefix that is finished or settled; returns its last finished delivery.
    ///
    /// Not its end: the broker closes a channel that acknowledges, cumulatively or not, a delivery already settled.
    fn prefix(&mut self) -> Option<u64> {
        let mut last_finished = None;
        loop {
            let next = self.settled + 1;
            if self.finished.remove(&next) || self.overdue.remove(&next) {
                last_finished = Some(next);
            } else if !self.passed.remove(&next) {
                return last_finished;
            }
            self.settled = next;
        }
    }

    /// Notes a finished delivery; returns what to acknowledge with everything before it, if it is enough.
    fn finish(&mut self, tag: u64) -> Option<u64> {
        self.finished.insert(tag);
        let is_enough =
            self.finished.len() >= self.enough && self.finished.first() == Some(&(self.settled + 1));
        if is_enough { self.prefix() } else { None }
    }

    /// What a tick acknowledges: the prefix, and one by one what was already waiting at the last tick.
    fn tick(&mut self) -> (Option<u64>, Vec<u64>) {
        let prefix = self.prefix();
        let alone: Vec<u64> = std::mem::take(&mut self.overdue).into_iter().collect();
        self.passed.extend(&alone);
        self.overdue = std::mem::take(&mut self.finished);
        (prefix, alone)
    }
}

impl Ledger {
    pub(super) fn new(
        channel: Channel,
        generation: Generation,
        prefetch: u16,
        waiting: Arc<Notify>,
    ) -> Arc<Self> {
        Arc::new(Self { channel, generation, book: Mutex::new(Book::new(prefetch)), waiting })
    }

    /// Takes another prefetch window into account.
    pub(super) fn resize(&self, prefetch: u16) {
        self.book().enough = Book::enough(prefetch);
    }

    /// The ticket of a delivery just received.
    pub(super) fn ticket(self: &Arc<Self>, tag: u64) -> Ticket {
        Ticket { ledger: Arc::clone(self), tag }
    }

    /// Acknowledges what has waited long enough. Returns whether anything still waits.
    pub(super) fn tick(&self) -> bool {
        let mut book = self.book();
        let (prefix, alone) = book.tick();
        let waits = !book.overdue.is_empty();
        if let Some(tag) = prefix {
            self.send_ack(tag, true);
        }
        for tag in alone {
            self.send_ack(tag, false);
        }
        waits
    }

    fn check(&self) -> Result<(), Stale> {
        if self.channel.status().connected() { Ok(()) } else { Err(Stale { generation: self.generation }) }
    }

    fn finish(&self, tag: u64) {
        // The guard is kept while frames are queued, here and below: an older cumulative acknowledgement behind a newer
        // one names a delivery already settled, and the broker closes the channel for that.
        let mut book = self.book();
        match book.finish(tag) {
            Some(tag) => self.send_ack(tag, true),
            None => self.waiting.notify_one(),
        }
    }

    fn give_back(&self, tag: u64) {
        let mut book = self.book();
        book.passed.insert(tag);
        let options = BasicNackOptions { multiple: false, requeue: true };
        let _ = self.channel.basic_nack(tag, options).now_or_never();
    }

    /// The client library queues the frame at the first poll; the rest of the future only waits for the socket.
    fn send_ack(&self, tag: u64, multiple: bool) {
        let _ = self.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Held for set operations only; none of them can panic half-way.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_finished_prefix_is_acknowledged_by_the_next_tick_or_once_it_is_long_enough() {
        let mut book = Book::new(1000);
        for tag in [2, 1, 3] {
            assert_eq!(book.finish(tag), None);
        }
        assert_eq!(book.tick(), (Some(3), vec![]));
        let last = 3 + ENOUGH as u64;
        for tag in 4..last {
            assert_eq!(book.finish(tag), None);
        }
        assert_eq!(book.finish(last), Some(last));
        assert_eq!(book.tick(), (None, vec![]));
    }

    #[test]
    fn a_slow_delivery_holds_nobody_longer_than_two_ticks() {
        let mut book = Book::new(1000);
        book.finish(2);
        book.finish(3);
        assert_eq!(book.tick(), (None, vec![]));
        assert_eq!(book.tick(), (None, vec![2, 3]));
        assert_eq!(book.finish(1), None);
        assert_eq!(book.tick(), (Some(1), vec![]));
    }

    proptest! {
        /// In whatever order deliveries finish or go back, and ticks fall: each is settled exactly once, and a cumulative
        /// acknowledgement never covers an unfinished one.
        #[test]
        fn every_delivery_is_settled_once(
            order in Just((1u64..=200).collect::<Vec<_>>()).prop_shuffle(),
            given_back in prop::collection::btree_set(1u64..=200, 0..20),
            tick_every in 1usize..50,
        ) {
            let mut book = Book::new(1000);
            let mut settled = BTreeSet::new();
            let mut done = BTreeSet::new();
            let cumulative = |settled: &mut BTreeSet<u64>, done: &BTreeSet<u64>, end: u64| {
                assert!(!settled.contains(&end), "{end} twice");
                for tag in 1..=end {
                    assert!(done.contains(&tag), "{tag} acknowledged unfinished");
                    settled.insert(tag);
                }
            };
            for (count, &tag) in order.iter().enumerate() {
                done.insert(tag);
                if given_back.contains(&tag) {
                    prop_assert!(settled.insert(tag));
                    book.passed.insert(tag);
                } else if let Some(end) = book.finish(tag) {
                    cumulative(&mut settled, &done, end);
                }
                if count % tick_every == 0 {
                    let (prefix, alone) = book.tick();
                    prefix.into_iter().for_each(|end| cumulative(&mut settled, &done, end));
                    for tag in alone {
                        prop_assert!(settled.insert(tag), "{} twice", tag);
                    }
                }
            }
            for _ in 0..2 {
                let (prefix, alone) = book.tick();
                prefix.into_iter().for_each(|end| cumulative(&mut settled, &done, end));
                settled.extend(alone);
            }
            prop_assert_eq!(settled.len(), 200);
        }
    }
}
