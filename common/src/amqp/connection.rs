//! Connections and their supervision.
//!
//! The client library's own recovery is not used: it knows one address, hangs after channel errors, and cannot tell a
//! delivery of the old connection from one of the new. Here every connection has a [`Generation`], state is thrown away
//! with it, and the next one starts from nothing after a jittered pause.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use lapin::tcp::OwnedTLSConfig;
use lapin::{Connection, ConnectionProperties};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::address::Address;
use super::{guard, tls};
use crate::config::sections::Broker;
use crate::lifecycle::Lifecycle;

/// Counts the connections of one supervisor, from 1. A delivery is settled on the generation that received it or not at all.
pub type Generation = u64;

/// A session this long counts as healthy; after it the pause before reconnecting starts small again.
const HEALTHY: Duration = Duration::from_secs(10);
/// The longest pause before reconnecting, to which up to as much again is added at random. A broker that has started again
/// should see its fleet at work within seconds, and an attempt that is refused costs next to nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between two looks whether a connection still stands.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a session may take to be set up; the broker's disk may be busy.
const SET_UP_WITHIN: Duration = Duration::from_secs(30);
/// How long a polite close may take before the socket is dropped. A blocked connection would never answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Knows how to connect to the broker: addresses, TLS, heartbeat, timeout. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    addresses: Vec<Address>,
    tls: Tls,
    connect_timeout: Duration,
    heartbeat: u16,
    name: String,
}

struct Tls(OwnedTLSConfig);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(..)") // may hold a private key
    }
}

/// No connection to any of the addresses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// A certificate or key file of the TLS configuration cannot be read.
    #[error("cannot read {path} ({what}): {reason}")]
    TlsFile {
        /// The file.
        path: String,
        /// The configuration key that names it.
        what: &'static str,
        /// The system's reason.
        reason: String,
    },
    /// The broker at this address did not take the connection.
    #[error("cannot connect to {address}: {reason}")]
    Refused {
        /// The address, without its password.
        address: String,
        /// The reason, and what to do about it where that is known.
        reason: String,
    },
    /// The connection stands, but what it is for cannot be had.
    #[error("connected, but {reason}")]
    Unusable {
        /// What failed, and what to do about it where that is known.
        reason: String,
    },
}

impl Connector {
    /// Reads the TLS files and prepares to connect; connects to nothing yet. `name` appears in the broker's list of connections.
    ///
    /// # Errors
    /// [`ConnectError::TlsFile`].
    pub fn new(broker: &Broker, name: &str) -> Result<Self, ConnectError> {
        let tls = tls::read(&broker.tls)?;
        Ok(Self {
            inner: Arc::new(Inner {
                addresses: broker.addresses.clone(),
                tls: Tls(tls),
                connect_timeout: Duration::from_secs(broker.connect_timeout_seconds),
                heartbeat: broker.heartbeat_seconds,
                name: name.to_owned(),
            }),
        })
    }

    /// The addresses, in the order they are tried.
    pub fn addresses(&self) -> &[Address] {
        &self.inner.addresses
    }

    /// Connects to the first address that answers, beginning with number `first` (modulo their count).
    pub(super) async fn connect(&self, role: &str, first: u64) -> Result<Connection, ConnectError> {
        let inner = &*self.inner;
        let count = inner.addresses.len();
        let start = usize::try_from(first).unwrap_or(0) % count;
        let mut failure = None;
        for address in inner.addresses.iter().cycle().skip(start).take(count) {
            let mut uri = address.uri();
            uri.query.heartbeat.get_or_insert(inner.heartbeat);
            let properties =
                ConnectionProperties::default().with_connection_name(format!("{} {role}", inner.name).into());
            match guard::connect(uri, properties, inner.tls.0.clone(), inner.connect_timeout).await {
                Ok(connection) => return Ok(connection),
                Err(Some(error)) => failure = Some(refused(address, &error)),
                Err(None) => {
                    failure = Some(ConnectError::Refused {
                        address: address.to_string(),
                        reason: format!("no answer within {:?}", inner.connect_timeout),
                    });
                }
            }
        }
        Err(failure.expect("configuration demands at least one address"))
    }
}

fn refused(address: &Address, error: &lapin::Error) -> ConnectError {
    let text = error.to_string();
    let hint = if text.contains("ACCESS_REFUSED") || text.contains("ACCESS-REFUSED") {
        "check user and password in broker.addresses or MILLRACE_AMQP_URL; `guest` may only connect from the broker's own host"
    } else if text.contains("NOT_ALLOWED") || text.contains("NOT-ALLOWED") {
        "check that the virtual host in broker.addresses or MILLRACE_AMQP_URL exists and the user has permissions in it"
    } else if let Some(hint) = tls::hint(&text).filter(|_| address.is_encrypted()) {
        hint
    } else if text.contains("refused") {
        "is the broker running, and is this its port?"
    } else {
        return ConnectError::Refused { address: address.to_string(), reason: text };
    };
    ConnectError::Refused { address: address.to_string(), reason: format!("{text} ({hint})") }
}

/// What a supervised connection is doing.
#[derive(Clone, Debug)]
pub enum LinkState {
    /// Not connected; the last failure, if there was one.
    Down(Option<ConnectError>),
    /// Connected and set up, in this generation.
    Up(Generation),
}

/// A live connection, lent to one session.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) generation: Generation,
    state: watch::Sender<LinkState>,
}

impl Link {
    /// Completes when the connection has ended. The client library does not tell everybody who waits for an answer over it.
    pub(super) async fn gone(&self) {
        while self.connection.status().connected() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The result of setting a session up, if it comes in time over a connection that stands.
    pub(super) async fn set_up<T>(&self, setting_up: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            biased;
            done = tokio::time::timeout(SET_UP_WITHIN, setting_up) => {
                done.map_err(|_| End::Unusable(format!("the broker did not answer for {SET_UP_WITHIN:?}")))
            }
            () = self.gone() => Err(End::Lost),
        }
    }

    /// Tells watchers that the session is set up.
    pub(super) fn announce_up(&self) {
        self.state.send_replace(LinkState::Up(self.generation));
    }
}

/// How a session ended.
pub(super) enum End {
    /// The connection or a channel is gone.
    Lost,
    /// What the session needs cannot be had.
    Unusable(String),
    /// Nobody wants anything of it any more.
    Over,
}

/// Keeps one connection: connects, runs `session` until it ends, pauses, starts over; ends when `lifecycle` stops or the
/// session is over.
///
/// `session` gets the connection by reference and must end soon after the connection dies or the lifecycle stops.
pub(super) async fn supervise<S>(
    connector: Connector,
    role: &'static str,
    lifecycle: Lifecycle,
    state: watch::Sender<LinkState>,
    mut session: S,
) where
    S: AsyncSession,
{
    let pauses = || {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(LONGEST_PAUSE)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter()
            .build()
    };
    let mut pause = pauses();
    let mut generation = 0;
    while !lifecycle.is_stopping() {
        let connected = tokio::select! {
            connected = connector.connect(role, generation) => connected,
            () = lifecycle.stopping() => break,
        };
        match connected {
            Ok(connection) => {
                generation += 1;
                info!(role, generation, "connected to the broker");
                let started = Instant::now();
                let link = Link { connection, generation, state: state.clone() };
                let end = session.run(&link).await;
                let failure = match &end {
                    End::Unusable(reason) => {
                        warn!(role, generation, reason, "the connection is of no use");
                        Some(ConnectError::Unusable { reason: reason.clone() })
                    }
                    End::Lost | End::Over => None,
                };
                state.send_replace(LinkState::Down(failure));
                close(&link.connection).await;
                if matches!(end, End::Over) {
                    break;
                }
                if started.elapsed() >= HEALTHY {
                    pause = pauses();
                }
                if !lifecycle.is_stopping() {
                    warn!(role, generation, "connection to the broker lost, reconnecting");
                }
            }
            Err(error) => {
                warn!(role, %error, "no connection to the broker, trying again");
                state.send_replace(LinkState::Down(Some(error)));
            }
        }
        let delay = pause.next().expect("without_max_times never ends");
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = lifecycle.stopping() => {}
        }
    }
    debug!(role, "supervisor ended");
}

/// One connection's worth of work.
pub(super) trait AsyncSession {
    /// Works until the connection ends or the lifecycle stops.
    fn run(&mut self, link: &Link) -> impl Future<Output = End> + Send;
}

/// Closes politely, but does not wait long: a blocked connection never answers.
pub(super) async fn close(connection: &Connection) {
    if connection.status().connected() {
        let closing = connection.close(200, "OK".into());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// Waits until the link is up.
///
/// # Errors
/// The last connect failure when `timeout` passes first; `None` when there was no failure yet.
pub async fn wait_up(
    state: &mut watch::Receiver<LinkState>,
    timeout: Duration,
) -> Result<(), Option<ConnectError>> {
    let up = state.wait_for(|state| matches!(state, LinkState::Up(_)));
    if let Ok(Ok(_)) = tokio::time::timeout(timeout, up).await {
        return Ok(());
    }
    match &*state.borrow() {
        LinkState::Up(_) => Ok(()),
        LinkState::Down(error) => Err(error.clone()),
    }
}
