//! From a request to the broker's answer: gate, room, publish, and again where nobody knows.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use millrace_common::amqp::connection::LinkState;
use millrace_common::amqp::publisher::{Forbidden, Outcome, Room};
use millrace_common::protocol::status::Code;
use tokio::time::Instant;

use super::Client;
use crate::error::Error;
use crate::gate::Gate;
use crate::outgoing::Outgoing;

/// The part of its budget that a request may wait for room to be published: one in so many.
const WAIT_FOR_ROOM: u32 = 8;
/// Pause before a request whose outcome is unknown is published again, under the same id.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Lets a request through the gate, and tells whether it is a probe.
    pub(super) fn admit(&self, routing_key: &str) -> Result<bool, Error> {
        let mut gate = self.gate();
        if gate.is_open() {
            return Ok(false);
        }
        let is_probe = gate.is_closed(routing_key);
        match gate.admit(routing_key, Instant::now().into_std()) {
            Ok(()) => Ok(is_probe),
            Err(pause) => Err(full(routing_key, pause)),
        }
    }

    /// Waits for room to publish, a part of the budget at most while the broker is there: what waits here for most of its time
    /// is published only to expire, and keeps others from being served in time.
    async fn room(&self, bytes: usize, (deadline, budget): (Instant, Duration)) -> Result<Room<'_>, Error> {
        let publisher = &self.inner.publisher;
        let patience = budget / WAIT_FOR_ROOM;
        loop {
            let until = deadline.min(Instant::now() + patience);
            match tokio::time::timeout_at(until, publisher.room(bytes)).await {
                Ok(room) => return Ok(room),
                Err(_) if until == deadline => return Err(Error::DeadlineExceeded { budget }),
                Err(_) if matches!(&*publisher.state().borrow(), LinkState::Up(_)) => {
                    return Err(Error::Refused {
                        code: Code::Overloaded,
                        message: "this client has more to publish than the broker takes in time".to_owned(),
                        retry_after: Some(patience),
                    });
                }
                Err(_) => {}
            }
        }
    }

    /// How long the gate holds requests of this key back.
    fn pause(&self, routing_key: &str) -> Option<Duration> {
        let gate = self.gate();
        if gate.is_open() { None } else { gate.pause(routing_key, Instant::now().into_std()) }
    }

    /// The queue took a request. Only a probe tells that it has room again: others were sent before it was full.
    pub(super) fn taken(&self, routing_key: &str, is_probe: bool) {
        if is_probe {
            self.gate().taken(routing_key);
        }
    }

    pub(super) fn gate(&self) -> MutexGuard<'_, Gate> {
        // Single map operations; a panic cannot leave it half changed.
        self.inner.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn publish(
        &self,
        outgoing: &Outgoing,
        is_probe: bool,
        (deadline, budget): (Instant, Duration),
    ) -> Result<(), Error> {
        let inner = &*self.inner;
        let mut last = String::new();
        loop {
            let room = match self.room(outgoing.bytes(), (deadline, budget)).await {
                Ok(room) => room,
                Err(_) if !last.is_empty() => {
                    return Err(Error::UnknownOutcome { reason: format!("not sent again in time ({last})") });
                }
                Err(error) => return Err(error),
            };
            // Whoever waited for room may find the gate closed by those before it.
            if let Some(pause) = self.pause(&outgoing.routing_key).filter(|_| !is_probe && last.is_empty()) {
                return Err(full(&outgoing.routing_key, pause));
            }
            let message = outgoing.message(&inner.request_exchange, &inner.reply_key, deadline);
            match tokio::time::timeout_at(deadline, room.publish(message).outcome()).await {
                Err(_) => {
                    let last = if last.is_empty() { "no answer from the broker" } else { &last };
                    let reason = format!("no confirm before the deadline ({last})");
                    return Err(Error::UnknownOutcome { reason });
                }
                Ok(Outcome::Confirmed) => {
                    self.taken(&outgoing.routing_key, is_probe);
                    return Ok(());
                }
                Ok(Outcome::Refused) => {
                    let (now, key) = (Instant::now().into_std(), &outgoing.routing_key);
                    let pause = self.gate().refused(key, now, is_probe, rand::random());
                    return Err(full(key, pause));
                }
                Ok(Outcome::Unroutable) => {
                    return Err(Error::Refused {
                        code: Code::UnknownModel,
                        message: format!(
                            "no queue for `{}`: no worker has served this model and tier yet",
                            outgoing.routing_key
                        ),
                        retry_after: None,
                    });
                }
                Ok(Outcome::Forbidden(forbidden)) => {
                    let (code, message) = match forbidden {
                        Forbidden::Access(message) => (Code::Unauthorized, message),
                        Forbidden::Size(message) => (Code::TooLarge, message),
                    };
                    return Err(Error::Refused { code, message, retry_after: None });
                }
                Ok(Outcome::NotSent(_)) => return Err(Error::Closed),
                Ok(Outcome::Unknown(reason)) => last = reason,
            }
            tokio::time::sleep(AGAIN_PAUSE).await;
        }
    }
}

fn full(routing_key: &str, pause: Duration) -> Error {
    Error::Refused {
        code: Code::Overloaded,
        message: format!("the queue of `{routing_key}` is full"),
        retry_after: Some(pause),
    }
}
