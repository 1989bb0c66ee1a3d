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
/// How long it waits for the answers that are outstanding on the other, while nothing is sent: one might never come.
const DRAINED_WITHIN: Duration = Duration::from_millis(300);

/// Nothing, or a channel that opens, or one that is open and waits until nothing is in flight on the other.
#[derive(Default)]
pub(super) struct Successor<'a> {
    opening: Option<BoxFuture<'a, Option<Arc<Channel>>>>,
    open: Option<(Arc<Channel>, Instant)>,
}

impl<'a> Successor<'a> {
    /// Whether there is none, nor will be.
    pub(super) fn is_none(&self) -> bool {
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

    /// The open channel, if there is one.
    pub(super) fn take(&mut self) -> Option<Arc<Channel>> {
        self.open.take().map(|(channel, _)| channel)
    }

    /// Completes when it has become open, or has been given up. Cancel safe.
    pub(super) async fn step(&mut self) {
        if let Some(opening) = &mut self.opening {
            let opened = opening.await;
            self.opening = None;
            self.open = opened.map(|channel| (channel, Instant::now() + DRAINED_WITHIN));
        } else if let Some((_, until)) = self.open {
            sleep_until(until).await;
            self.open = None;
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
