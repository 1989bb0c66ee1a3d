//! Looking without touching: which exchanges and queues exist, and how much waits in a queue.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::connection::{ConnectError, Connector, close};
use super::topology::Topology;

/// The reply code of an object that does not exist.
const NOT_FOUND: u16 = 404;

/// What waits in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages ready for delivery; those delivered and not yet acknowledged are not counted.
    pub messages: u32,
    /// Consumers.
    pub consumers: u32,
}

/// Why nothing could be looked at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InspectError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker would not say.
    #[error("the broker refused to show {what}: {reason}")]
    Refused {
        /// Kind and name of the object.
        what: String,
        /// The broker's words.
        reason: String,
    },
}

/// How much waits in the queue; `None` when it does not exist. Over a short connection of its own.
///
/// # Errors
/// [`InspectError`].
pub async fn queue_depth(connector: &Connector, queue: &str) -> Result<Option<QueueDepth>, InspectError> {
    let connection = connector.connect("inspect", 0).await?;
    let found = look_up(&connection, queue).await;
    close(&connection).await;
    found
}

/// The exchanges and queues of `topology` that do not exist, as `exchange NAME` and `queue NAME`.
///
/// Existence is all that AMQP can tell without changing something; arguments, bindings and policies it cannot.
///
/// # Errors
/// [`InspectError`].
pub async fn missing(connector: &Connector, topology: &Topology) -> Result<Vec<String>, InspectError> {
    let connection = connector.connect("inspect", 0).await?;
    let missing = look_for(&connection, topology).await;
    close(&connection).await;
    missing
}

async fn look_for(connection: &Connection, topology: &Topology) -> Result<Vec<String>, InspectError> {
    let mut missing = Vec::new();
    for exchange in &topology.exchanges {
        let what = format!("exchange {}", exchange.name);
        let channel = channel(connection, &what).await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        // A passive declaration compares nothing but the name.
        let declared = channel
            .exchange_declare(
                exchange.name.as_str().into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await;
        if found(declared, &what)?.is_none() {
            missing.push(what);
        } else {
            let _ = channel.close(200, "OK".into()).await;
        }
    }
    for queue in &topology.queues {
        if look_up(connection, &queue.name).await?.is_none() {
            missing.push(format!("queue {}", queue.name));
        }
    }
    Ok(missing)
}

async fn look_up(connection: &Connection, queue: &str) -> Result<Option<QueueDepth>, InspectError> {
    let what = format!("queue {queue}");
    let channel = channel(connection, &what).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
    let Some(queue) = found(declared, &what)? else { return Ok(None) };
    let depth = QueueDepth { messages: queue.message_count(), consumers: queue.consumer_count() };
    let _ = channel.close(200, "OK".into()).await;
    Ok(Some(depth))
}

async fn channel(connection: &Connection, what: &str) -> Result<Channel, InspectError> {
    connection.create_channel().await.map_err(|error| refused(what, &error))
}

/// A channel does not survive a name that is not there: each look-up has its own.
fn found<T>(declared: lapin::Result<T>, what: &str) -> Result<Option<T>, InspectError> {
    match declared {
        Ok(object) => Ok(Some(object)),
        Err(error) => match error.kind() {
            ErrorKind::ProtocolError(refusal) if refusal.get_id() == NOT_FOUND => Ok(None),
            _ => Err(refused(what, &error)),
        },
    }
}

fn refused(what: &str, error: &lapin::Error) -> InspectError {
    InspectError::Refused { what: what.to_owned(), reason: error.to_string() }
}
