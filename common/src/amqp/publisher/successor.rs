//! The channel that is to replace a publisher's.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};
use tokio::time::{Instant, sleep_until, timeout};

/// How long opening it may take.
const OPENED_WITHIN: Duration = Duration::from_secs(2);
/// How long it waits for the answers that are outstanding on the other, while nothing is sent: one might never come. Doubled up to
/// the second each time that it was not enough.
const DRAINED_WITHIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(5)];

/// Nothing, or a channel that opens, or one that is open and waits until nothing is in flight on the other.
pub(super) struct Successor<'a> {
    opening: Option<BoxFuture<'a, Option<Arc<Channel>>>>,
    open: Option<(Arc<Channel>, Instant)>,
    drained_within: Duration,
}

impl Default for Successor<'_> {
    fn default() -> Self {
        Self { opening: None, open: None, drained_within: DRAINED_WITHIN[0] }
    }
}

impl<'a> Successor<'a> {
    /// Whether there is none, nor does one open.
    pub(super) fn is_idle(&self) -> bool {
        self.opening.is_none() && self.open.is_none()
    }

    /// Begins to open one, while the other goes on.
    pub(super) fn begin(&mut self, connection: &'a Connection) {
        self.opening = Some(Box::pin(async {
            timeout(OPENED_WITHIN, confirm_channel(connection)).await.ok().and_then(Result::ok).map(Arc::new)
        }));
    }

    /// Whether nothing should be sent any more on the other.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The open channel, if there is one. Whoever has the last clone of the other channel closes it by dropping that.
    pub(super) fn take(&mut self) -> Option<Arc<Channel>> {
        let (channel, _) = self.open.take()?;
        self.drained_within = DRAINED_WITHIN[0];
        Some(channel)
    }

    /// Completes when it has become open, or has been given up. Cancel safe.
    pub(super) async fn step(&mut self) {
        if let Some(opening) = &mut self.opening {
            let opened = opening.await;
            self.opening = None;
            self.open = opened.map(|channel| (channel, Instant::now() + self.drained_within));
        } else if let Some((_, until)) = self.open {
            sleep_until(until).await;
            self.open = None;
            self.drained_within = (self.drained_within * 2).min(DRAINED_WITHIN[1]);
        } else {
            pending::<()>().await;
        }
    }
}

/// A channel whose publishes are confirmed.
pub(super) async fn confirm_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}
