//! What all workers are told: that nobody waits for a request any more, and to announce themselves.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::properties::Properties;
use millrace_common::amqp::publisher::{Message, Outcome, Publisher, PublisherOptions};
use millrace_common::amqp::topology::Names;
use millrace_common::control::{Control, MAX_IDS};
use millrace_common::lifecycle::Lifecycle;
use tokio::sync::mpsc;

/// Each message goes to every worker: so long others are waited for that travel with it.
const LINGER: Duration = Duration::from_millis(10);
/// Cancellations waiting to be sent. More than that are not worth the workers' time: those run, and nobody hears of it.
const WAITING: usize = 10_000;

/// What to tell all workers.
#[derive(Debug)]
pub(crate) enum Command {
    /// Nobody waits for the request of this id.
    Cancel(String),
    /// They are to announce themselves.
    Announce,
}

/// Sends control messages, over a connection of its own from the first one on: what a broker without the exchange, or one that does not
/// let this user write to it, does to it hurts nothing else.
#[derive(Debug, Default)]
pub(crate) struct Controller {
    commands: OnceLock<mpsc::Sender<Command>>,
}

impl Controller {
    /// Tells the workers soon. Does not block; needs a runtime about it the first time.
    pub(crate) fn tell(&self, command: Command, connector: &Connector, names: &Names, lifecycle: &Lifecycle) {
        if lifecycle.is_stopping() {
            return;
        }
        let start = || {
            let (commands, waiting) = mpsc::channel(WAITING);
            let user: Arc<str> = connector.addresses()[0].user().into();
            let options = PublisherOptions::default();
            let publisher = Publisher::spawn(connector.clone(), "control", options, lifecycle);
            lifecycle.spawn(send(
                waiting,
                publisher,
                names.control_exchange().into(),
                user,
                lifecycle.clone(),
            ));
            commands
        };
        // Full: see above.
        let _ = self.commands.get_or_init(start).try_send(command);
    }
}

async fn send(
    mut waiting: mpsc::Receiver<Command>,
    publisher: Publisher,
    exchange: Arc<str>,
    user: Arc<str>,
    lifecycle: Lifecycle,
) {
    let sending = async {
        loop {
            let mut commands = Vec::new();
            if waiting.recv_many(&mut commands, MAX_IDS).await == 0 {
                return;
            }
            tokio::time::sleep(LINGER).await;
            while commands.len() < MAX_IDS
                && let Ok(command) = waiting.try_recv()
            {
                commands.push(command);
            }
            let mut control = Control::cancel(Vec::new());
            for command in commands {
                match command {
                    Command::Cancel(id) => control.cancel.push(id),
                    Command::Announce => control.announce = true,
                }
            }
            // Lost, they run, as if their callers had not cancelled; and workers announce themselves every second anyway.
            publish(&publisher, &exchange, &user, &control).await;
        }
    };
    tokio::select! {
        () = sending => {}
        () = lifecycle.stopping() => {}
    }
}

/// Tells all workers, as this user, and says what the broker did with that.
pub(crate) async fn publish(
    publisher: &Publisher,
    exchange: &Arc<str>,
    user: &str,
    control: &Control,
) -> Outcome {
    let message = Message {
        exchange: Arc::clone(exchange),
        routing_key: String::new(),
        properties: Properties::new().with_content_type("application/json").with_user_id(user),
        body: control.write().into(),
        mandatory: false,
    };
    publisher.publish(message).await
}
