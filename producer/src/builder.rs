//! How a client is set up.

use tokio::sync::mpsc;

use crate::client::Client;
use crate::config::Config;
use crate::error::ConnectError;
use crate::replies::Orphan;

/// Orphaned replies handed over but not yet taken.
const ORPHANS: usize = 256;

/// How a client is set up, beyond its configuration.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) config: Config,
    pub(crate) name: String,
    pub(crate) reply_key: Option<String>,
}

impl Builder {
    /// The name shown in the broker's list of connections.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Uses this reply key again, so that replies to an earlier process come to this one.
    #[must_use]
    pub fn reply_key(mut self, key: impl Into<String>) -> Self {
        self.reply_key = Some(key.into());
        self
    }

    /// Connects; replies that no request waits for are acknowledged and dropped.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        Client::open(self, None).await
    }

    /// Connects; replies that no request waits for come out of the channel, which must be read. The reply queue outlives the
    /// client, for the next one with the same reply key.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_with_orphans(self) -> Result<(Client, mpsc::Receiver<Orphan>), ConnectError> {
        let (sender, orphans) = mpsc::channel(ORPHANS);
        Ok((Client::open(self, Some(sender)).await?, orphans))
    }
}
