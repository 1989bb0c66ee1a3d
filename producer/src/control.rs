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
    link: OnceLock<Link>,
}

impl Controller {
    /// Tells the workers soon. Does not block; needs a runtime about it the first time.
    pub(crate) fn tell(&self, command: Command, connector: &Connector, names: &Names, lifecycle: &Lifecycle) {
        if !lifecycle.is_stopping() {
            // Full: see above.
            let _ = self.link(connector, names, lifecycle).commands.try_send(command);
        }
    }

    /// What tells the workers at once. Needs a runtime about it the first time.
    pub(crate) fn sender(&self, connector: &Connector, names: &Names, lifecycle: &Lifecycle) -> Sender {
        self.link(connector, names, lifecycle).sender.clone()
    }

    fn link(&self, connector: &Connector, names: &Names, lifecycle: &Lifecycle) -> &Link {
        self.link.get_or_init(|| {
            let (commands, waiting) = mpsc::channel(WAITING);
            let options = PublisherOptions::default();
            let sender = Sender {
                publisher: Publisher::spawn(connector.clone(), "control", options, lifecycle),
                exchange: names.control_exchange().into(),
                user: connector.addresses()[0].user().into(),
            };
            lifecycle.spawn(send(waiting, sender.clone(), lifecycle.clone()));
            Link { commands, sender }
        })
    }
}

#[derive(Debug)]
struct Link {
    commands: mpsc::Sender<Command>,
    sender: Sender,
}

/// Publishes as this user.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    publisher: Publisher,
    exchange: Arc<str>,
    user: Arc<str>,
}

impl Sender {
    /// Says what the broker did with it.
    pub(crate) async fn publish(&self, control: &Control) -> Outcome {
        let message = Message {
            exchange: Arc::clone(&self.exchange),
            routing_key: String::new(),
            properties: Properties::new().with_content_type("application/json").with_user_id(&self.user),
            body: control.write().into(),
            mandatory: false,
        };
        self.publisher.publish(message).await
    }
}

async fn send(mut waiting: mpsc::Receiver<Command>, sender: Sender, lifecycle: Lifecycle) {
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
            sender.publish(&control).await;
        }
    };
    tokio::select! {
        () = sending => {}
        () = lifecycle.stopping() => {}
    }
}
