//! Either client behind one face.

use std::time::Instant;

use anyhow::Result;

use super::library::Library;
use super::raw::Raw;
use super::tally::Ended;
use super::{ClientKind, Fate, Spec};

pub(super) enum Sender {
    Library(Box<Library>),
    Raw(Box<Raw>),
}

impl Sender {
    pub(super) async fn connect(spec: &Spec) -> Result<Self> {
        Ok(match spec.client {
            ClientKind::Library => Self::Library(Box::new(Library::connect(spec).await?)),
            ClientKind::Raw => Self::Raw(Box::new(Raw::connect(spec).await?)),
        })
    }

    /// Sends one request and sees it to its end.
    pub(super) async fn send(&self, intended: Instant) -> Ended {
        let sent = Instant::now();
        let fate: Fate = match self {
            Self::Library(client) => client.send().await,
            // In a box, since it is larger than the other's future.
            Self::Raw(client) => Box::pin(client.send()).await,
        };
        Ended { intended, sent, fate }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Library(client) => client.close().await,
            Self::Raw(client) => client.close().await,
        }
    }
}
