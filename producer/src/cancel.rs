//! Cancelling what nobody waits for any more.

use crate::client::Client;

/// Cancels a request when it is dropped before the request's end.
#[derive(Debug)]
pub(crate) struct Cancel {
    client: Client,
    id: Option<String>,
}

impl Cancel {
    /// For a request that may be away from now on.
    pub(crate) fn new(client: &Client, id: &str) -> Self {
        // Where replies outlive the client it does not cancel: a later one wants them.
        Self { client: client.clone(), id: (!client.keeps_replies()).then(|| id.to_owned()) }
    }

    /// It has ended, by an answer or by its deadline.
    pub(crate) fn ended(&mut self) {
        self.id = None;
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.client.cancel_soon(id);
        }
    }
}
