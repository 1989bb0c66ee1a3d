//! The closed loop: the next request goes out when one is answered.

use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::sender::Sender;
use super::tally::Tally;

pub(super) async fn run(sender: &Sender, in_flight: usize, start: Instant, tally: &mut Tally) {
    tokio::time::sleep_until(start.into()).await;
    let mut open = FuturesUnordered::new();
    let send = |tally: &mut Tally| {
        let now = Instant::now();
        tally.offer(now);
        sender.send(now)
    };
    open.extend((0..in_flight).map(|_| send(tally)));
    while let Some(ended) = open.next().await {
        tally.add(ended);
        if Instant::now() < tally.end() {
            open.push(send(tally));
        }
    }
}
