//! A request that the broker has, and its result.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::Error;
use crate::replies::{Place, RawReply, Reply};
use crate::response::Response;

/// A request that the broker has; gives its result.
#[derive(Debug)]
#[must_use = "dropping the handle gives the result up"]
pub struct Handle {
    replied: oneshot::Receiver<RawReply>,
    early: Option<RawReply>,
    deadline: Instant,
    budget: Duration,
    client: Client,
    _place: Place,
}

impl Handle {
    pub(crate) fn new(
        replied: oneshot::Receiver<RawReply>,
        place: Place,
        deadline: Instant,
        budget: Duration,
        client: Client,
    ) -> Self {
        Self { replied, early: None, deadline, budget, client, _place: place }
    }

    /// The reply, where it overtakes the broker's confirm.
    pub(crate) fn early(&mut self) -> &mut oneshot::Receiver<RawReply> {
        &mut self.replied
    }

    /// Keeps a reply that was early.
    pub(crate) fn keep(&mut self, reply: RawReply) {
        self.early = Some(reply);
    }

    /// Awaits the result; acknowledges the reply.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`], [`Error::Failed`], [`Error::MalformedReply`] or [`Error::Closed`].
    pub async fn outcome(self) -> Result<Response, Error> {
        let Reply { outcome, receipt } = self.reply().await?;
        receipt.acknowledge();
        outcome
    }

    /// Awaits the reply; the caller acknowledges it, once it is safe, by its receipt.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] or [`Error::Closed`], when there is no reply.
    pub async fn reply(mut self) -> Result<Reply, Error> {
        let raw = match self.early.take() {
            Some(raw) => raw,
            None => match tokio::time::timeout_at(self.deadline, &mut self.replied).await {
                Ok(Ok(raw)) => raw,
                Ok(Err(_)) => return Err(Error::Closed),
                Err(_) => return Err(Error::DeadlineExceeded { budget: self.budget }),
            },
        };
        Ok(raw.decode(self.client.config().limits.into()).await)
    }
}
