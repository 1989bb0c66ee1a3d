//! The open loop: requests go out at their intended times, whatever the answers do.

use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::Fate;
use super::sender::Sender;
use super::tally::{Ended, Tally};

/// Requests open at a time. Above it they count as unsent: this process must not become the benchmark's backlog.
const MAX_OPEN: usize = 20_000;
/// Requests due within this time go out together: a wake-up for each would cost more than sending it.
const GRAIN: Duration = Duration::from_micros(200);
/// Groups of due requests not yet sent; full, it delays those after it, which the lag shows.
const GROUPS: usize = 4096;

pub(super) async fn run(
    sender: &Sender,
    times: impl Iterator<Item = Duration> + Send + 'static,
    start: Instant,
    tally: &mut Tally,
) {
    let (groups, mut due) = mpsc::channel(GROUPS);
    // A thread of its own: the runtime's timer counts whole milliseconds.
    let pacer = std::thread::spawn(move || pace(times, start, &groups));
    let mut open = FuturesUnordered::new();
    let mut is_over = false;
    loop {
        tokio::select! {
            group = due.recv(), if !is_over => match group {
                None => is_over = true,
                Some(group) => for intended in group {
                    tally.offer(intended);
                    if open.len() < MAX_OPEN {
                        let mut sending = Box::pin(sender.send(intended));
                        // What is refused on the spot needs no place among those that wait.
                        match (&mut sending).now_or_never() {
                            Some(ended) => tally.add(ended),
                            None => open.push(sending),
                        }
                    } else {
                        tally.add(Ended { intended, sent: intended, fate: Fate::Unsent });
                    }
                },
            },
            Some(ended) = open.next(), if !open.is_empty() => tally.add(ended),
            else => break,
        }
    }
    let _ = pacer.join();
}

/// Hands out each intended time once it has come.
fn pace(times: impl Iterator<Item = Duration>, start: Instant, groups: &mpsc::Sender<Vec<Instant>>) {
    let mut times = times.map(|at| start + at).peekable();
    while let Some(&next) = times.peek() {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let mut group = Vec::new();
        while let Some(at) = times.next_if(|&at| at <= now) {
            group.push(at);
        }
        if groups.blocking_send(group).is_err() {
            return;
        }
        if times.peek().is_some_and(|&next| next < now + GRAIN) {
            std::thread::sleep(GRAIN);
        }
    }
}
