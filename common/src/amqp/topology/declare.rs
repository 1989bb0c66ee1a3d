//! Topology to broker.

use futures_util::future::try_join_all;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind as LapinExchangeKind};
use tracing::warn;

use super::super::connection::{self, ConnectError, Connector};
use super::{
    Argument, Arguments, Binding, Exchange, ExchangeBinding, ExchangeKind, Queue, QueueKind, Stale, Topology,
};

/// Channels that declare side by side.
const CHANNELS: usize = 8;
/// A broker that stops.
const CONNECTION_FORCED: u16 = 320;
/// In the broker's words where a queue is there, and what runs it is not.
const NODE_DOWN: &str = "is down or inaccessible";
/// The type of exchange that a plugin brings; the broker names it where it refuses it.
const CONSISTENT_HASH: &str = "x-consistent-hash";

/// An object the broker would not declare.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the broker refused to declare {what}: {reason}")]
pub struct DeclareError {
    /// Kind and name of the object.
    pub what: String,
    /// The broker's words and, where known, the remedy.
    pub reason: String,
    cause: Cause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The broker does not allow it.
    Refusal,
    /// The connection ended meanwhile.
    Lost,
    /// The node that has it is down, or still starts.
    NodeDown,
}

/// Declares `topology` over a short connection of its own, then removes what is stale.
///
/// # Errors
/// [`ApplyError`].
pub async fn apply(connector: &Connector, topology: &Topology) -> Result<(), ApplyError> {
    let connection = connector.connect("topology", 0).await?;
    let declared = topology.declare(&connection).await;
    connection::close(&connection).await;
    Ok(declared?)
}

/// Deletes a queue with what is in it, over a short connection of its own. One that does not exist is no error.
///
/// # Errors
/// [`ApplyError`].
pub async fn delete_queue(connector: &Connector, queue: &str) -> Result<(), ApplyError> {
    let connection = connector.connect("topology", 0).await?;
    let deleted = async {
        let channel = open(&connection).await?;
        let deleting = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        deleting.map_err(|error| declined("deletion of queue", queue, &error))
    };
    let deleted = deleted.await;
    connection::close(&connection).await;
    deleted?;
    Ok(())
}

/// Why a topology could not be applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApplyError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An object was refused.
    #[error(transparent)]
    Declare(DeclareError),
    /// The connection ended meanwhile.
    #[error("the connection to the broker was lost: {0}")]
    Lost(DeclareError),
    /// The node that has it is not up, or not yet: a moment after its start a broker knows of streams that do not run.
    #[error("a node of the broker is down, or starts: {0}")]
    NodeDown(DeclareError),
}

impl From<DeclareError> for ApplyError {
    fn from(error: DeclareError) -> Self {
        match error.cause {
            Cause::Refusal => Self::Declare(error),
            Cause::Lost => Self::Lost(error),
            Cause::NodeDown => Self::NodeDown(error),
        }
    }
}

impl Topology {
    /// Declares everything but policies, then removes what is stale. Declaring again what exists unchanged does nothing.
    pub(in crate::amqp) async fn declare(&self, connection: &Connection) -> Result<(), DeclareError> {
        declare_exchanges(connection, &self.exchanges).await?;
        // Queues are the bulk, one for each model and tier, and the broker handles a channel's declarations one by one,
        // each with its disk: 200 queues with their bindings took 1.6 s on one channel, 0.5 s on eight (2026-11).
        let share = |all: usize| all.div_ceil(CHANNELS).max(1);
        let queues = self.queues.chunks(share(self.queues.len()));
        try_join_all(queues.map(|queues| declare_queues(connection, queues))).await?;
        let bindings = self.bindings.chunks(share(self.bindings.len()));
        try_join_all(bindings.map(|bindings| bind_queues(connection, bindings))).await?;
        // After its own bindings: an exchange that requests come to must lead somewhere.
        bind_exchanges(connection, &self.exchange_bindings).await?;
        // Last: for a moment a request may take the old way and the new one, run twice, and its caller drops the second reply.
        // The other order would return it meanwhile, and its caller would hear that nobody serves the model.
        let stale = self.stale.chunks(share(self.stale.len()));
        match try_join_all(stale.map(|stale| remove(connection, stale))).await {
            // Mostly there is nothing to remove, and who may create may not remove.
            Err(error) if error.reason.contains("ACCESS") => {
                warn!(%error, "old routes stay, if there are any")
            }
            removed => drop(removed?),
        }
        Ok(())
    }
}

async fn declare_exchanges(connection: &Connection, exchanges: &[Exchange]) -> Result<(), DeclareError> {
    let channel = open(connection).await?;
    for exchange in exchanges {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let kind = match exchange.kind {
            ExchangeKind::Topic => LapinExchangeKind::Topic,
            ExchangeKind::Direct => LapinExchangeKind::Direct,
            ExchangeKind::Fanout => LapinExchangeKind::Fanout,
            ExchangeKind::ConsistentHash => LapinExchangeKind::Custom(CONSISTENT_HASH.to_owned()),
        };
        channel
            .exchange_declare(exchange.name.as_str().into(), kind, options, table(&exchange.arguments))
            .await
            .map_err(|error| declined("exchange", &exchange.name, &error))?;
    }
    Ok(())
}

async fn declare_queues(connection: &Connection, queues: &[Queue]) -> Result<(), DeclareError> {
    let channel = open(connection).await?;
    for queue in queues {
        let options = match queue.kind {
            QueueKind::Exclusive => QueueDeclareOptions::exclusive(),
            QueueKind::Quorum | QueueKind::Classic | QueueKind::Stream => QueueDeclareOptions::durable(),
        };
        channel
            .queue_declare(queue.name.as_str().into(), options, table(&queue.arguments))
            .await
            .map_err(|error| declined("queue", &queue.name, &error))?;
    }
    Ok(())
}

async fn bind_queues(connection: &Connection, bindings: &[Binding]) -> Result<(), DeclareError> {
    let channel = open(connection).await?;
    for binding in bindings {
        channel
            .queue_bind(
                binding.queue.as_str().into(),
                binding.exchange.as_str().into(),
                binding.routing_key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| declined("binding of queue", &binding.queue, &error))?;
    }
    Ok(())
}

async fn bind_exchanges(connection: &Connection, bindings: &[ExchangeBinding]) -> Result<(), DeclareError> {
    if bindings.is_empty() {
        return Ok(());
    }
    let channel = open(connection).await?;
    for binding in bindings {
        channel
            .exchange_bind(
                binding.to.as_str().into(),
                binding.from.as_str().into(),
                binding.routing_key.as_str().into(),
                ExchangeBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| declined("binding of exchange", &binding.to, &error))?;
    }
    Ok(())
}

/// What does not exist is no error to the broker.
async fn remove(connection: &Connection, stale: &[Stale]) -> Result<(), DeclareError> {
    let channel = open(connection).await?;
    for stale in stale {
        match stale {
            Stale::Exchange(name) => {
                let deleted = channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default());
                deleted.await.map_err(|error| declined("deletion of exchange", name, &error))?;
            }
            Stale::Binding(Binding { exchange, queue, routing_key }) => {
                let (from, key) = (exchange.as_str().into(), routing_key.as_str().into());
                let unbound = channel.queue_unbind(queue.as_str().into(), from, key, FieldTable::default());
                unbound.await.map_err(|error| declined("unbinding of queue", queue, &error))?;
            }
        }
    }
    Ok(())
}

/// A channel of its own, closed when dropped. The broker ends it with the first refusal.
async fn open(connection: &Connection) -> Result<Channel, DeclareError> {
    let opened = connection.create_channel().await;
    opened.map_err(|error| declined("channel", "for declarations", &error))
}

fn declined(kind: &str, name: &str, error: &lapin::Error) -> DeclareError {
    let reason = error.to_string();
    let hint = if reason.contains(CONSISTENT_HASH) && !reason.contains("inequivalent") {
        "; shards need a plugin that RabbitMQ ships with: run `rabbitmq-plugins enable rabbitmq_consistent_hash_exchange` on \
         every node of the broker"
    } else if reason.contains("PRECONDITION") {
        "; it exists with other arguments: `millrace topology diff` shows them"
    } else if reason.contains("ACCESS") {
        "; this user may not create it: let an operator run `millrace topology apply`"
    } else {
        ""
    };
    let cause = match error.kind() {
        ErrorKind::ProtocolError(refusal) if refusal.get_id() != CONNECTION_FORCED => {
            if reason.contains(NODE_DOWN) { Cause::NodeDown } else { Cause::Refusal }
        }
        _ => Cause::Lost,
    };
    DeclareError { what: format!("{kind} `{name}`"), reason: format!("{reason}{hint}"), cause }
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
        };
        table.insert(name.as_str().into(), value);
    }
    table
}
