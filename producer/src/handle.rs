//! A request that the broker has, and its result.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::cancel::Cancel;
use crate::client::Client;
use crate::error::Error;
use crate::packing::{Away, Part};
use crate::replies::{Place, RawReply, Reply};
use crate::response::Response;

/// A request that the broker has; gives its result.
///
/// Dropped before its end, or where awaiting it is given up, the request is cancelled: one that no model runs yet is never run. Not
/// where replies may come to a later client, nor in a pack, whose other members want theirs.
#[derive(Debug)]
#[must_use = "dropping the handle cancels the request"]
pub struct Handle {
    source: Source,
    deadline: Instant,
    budget: Duration,
    client: Client,
}

/// Where the result comes from.
#[derive(Debug)]
enum Source {
    /// A reply of its own.
    Alone(Box<Alone>),
    /// A part of a pack's.
    Packed(oneshot::Receiver<Part>),
}

#[derive(Debug)]
struct Alone {
    replied: oneshot::Receiver<RawReply>,
    early: Option<RawReply>,
    _place: Place,
    _away: Option<Away>,
    cancel: Cancel,
}

impl Handle {
    pub(crate) fn alone(
        (place, replied): (Place, oneshot::Receiver<RawReply>),
        early: Option<RawReply>,
        away: Option<Away>,
        (deadline, budget): (Instant, Duration),
        client: Client,
        cancel: Cancel,
    ) -> Self {
        let alone = Alone { replied, early, _place: place, _away: away, cancel };
        Self { source: Source::Alone(Box::new(alone)), deadline, budget, client }
    }

    pub(crate) fn packed(
        part: oneshot::Receiver<Part>,
        deadline: Instant,
        budget: Duration,
        client: Client,
    ) -> Self {
        Self { source: Source::Packed(part), deadline, budget, client }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Why the pack of this request was not taken.
    pub(crate) async fn refusal(self) -> Error {
        match self.reply().await {
            Err(error) | Ok(Reply { outcome: Err(error), .. }) => error,
            // Not told to be taken, and answered: its client is ending.
            Ok(_) => Error::Closed,
        }
    }

    /// Awaits the result; acknowledges the reply. A result that is there already is handed out at once, without a turn for other
    /// tasks of the runtime's thread.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`], [`Error::Failed`], [`Error::MalformedReply`] or [`Error::Closed`]; where the request
    /// travelled in a pack that had to be sent again, those of [`Client::submit`] too.
    pub async fn outcome(self) -> Result<Response, Error> {
        let Reply { outcome, receipt } = self.reply().await?;
        receipt.acknowledge();
        outcome
    }

    /// Awaits the reply; the caller acknowledges it, once it is safe, by its receipt. As with [`Handle::outcome`], one that is there
    /// already is handed out at once.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] or [`Error::Closed`], when there is no reply; where the request travelled in a pack that had
    /// to be sent again, those of [`Client::submit`] too.
    pub fn reply(self) -> impl Future<Output = Result<Reply, Error>> + Send {
        // Callers await thousands of these in one task, which would have spent its turn on the first 128 that are ready and then
        // look at all others in vain.
        tokio::task::unconstrained(self.await_reply())
    }

    async fn await_reply(self) -> Result<Reply, Error> {
        let Self { source, deadline, budget, client } = self;
        match source {
            // In a box: of thousands of futures that wait hardly one is as large as this.
            Source::Alone(alone) => Box::pin(alone.await_reply((deadline, budget), &client)).await,
            Source::Packed(part) => {
                let part = tokio::time::timeout_at(deadline, part).await;
                let part = part.map_err(|_| Error::DeadlineExceeded { budget })?;
                let (outcome, receipt) = part.map_err(|_| Error::Closed)??;
                Ok(Reply { outcome, receipt: receipt.claim() })
            }
        }
    }
}

impl Alone {
    async fn await_reply(
        mut self: Box<Self>,
        (deadline, budget): (Instant, Duration),
        client: &Client,
    ) -> Result<Reply, Error> {
        let raw = match self.early.take() {
            Some(raw) => Ok(Ok(raw)),
            None => tokio::time::timeout_at(deadline, &mut self.replied).await,
        };
        self.cancel.ended();
        let raw = raw.map_err(|_| Error::DeadlineExceeded { budget })?.map_err(|_| Error::Closed)?;
        Ok(raw.decode(client.config().limits.into()).await)
    }
}
