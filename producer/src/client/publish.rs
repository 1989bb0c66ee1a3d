//! From a request to the broker's answer: gate, room, publish, and again where nobody knows.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use millrace_common::amqp::connection::LinkState;
use millrace_common::amqp::publisher::{Forbidden, Outcome, Room};
use millrace_common::protocol::status::Code;
use tokio::time::Instant;

use super::Client;
use crate::error::Error;
use crate::gate::{Admission, Gate};
use crate::outgoing::Outgoing;

/// The part of its budget that a request may wait for room to be published: one in so many.
const WAIT_FOR_ROOM: u32 = 8;
/// What a client is told to wait while the broker takes nothing: an alarm lasts seconds, or until people come.
const BLOCKED_PAUSE: Duration = Duration::from_secs(5);
/// Pause before a request whose outcome is unknown is published again, under the same id.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Lets a request through the gate.
    pub(super) fn admit(&self, routing_key: &str) -> Result<Pass, Error> {
        if self.inner.publisher.is_blocked() {
            return Err(Error::Refused {
                code: Code::Overloaded,
                message: "the broker takes nothing: it is out of memory or disk".to_owned(),
                retry_after: Some(BLOCKED_PAUSE),
            });
        }
        let admitted = self.gate().admit(routing_key, Instant::now().into_std());
        let admission = admitted.map_err(|pause| full(routing_key, pause))?;
        Ok(Pass { client: self.clone(), routing_key: routing_key.to_owned(), admission, is_answered: false })
    }

    /// Waits for room to publish, a part of the budget at most while the broker is there: what waits here for most of its time
    /// is published only to expire, and keeps others from being served in time.
    async fn room(&self, bytes: usize, (deadline, budget): (Instant, Duration)) -> Result<Room<'_>, Error> {
        let publisher = &self.inner.publisher;
        let patience = budget / WAIT_FOR_ROOM;
        let is_up = || matches!(&*publisher.state().borrow(), LinkState::Up(_));
        loop {
            let (until, was_up) = (deadline.min(Instant::now() + patience), is_up());
            match tokio::time::timeout_at(until, publisher.room(bytes)).await {
                Ok(room) => return Ok(room),
                Err(_) if until == deadline => return Err(Error::DeadlineExceeded { budget }),
                Err(_) if was_up && is_up() => {
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

    pub(super) fn gate(&self) -> MutexGuard<'_, Gate> {
        // Single map operations; a panic cannot leave it half changed.
        self.inner.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes until the broker has taken the request or told why not.
    pub(super) async fn publish(
        &self,
        outgoing: &Outgoing,
        pass: &mut Pass,
        (deadline, budget): (Instant, Duration),
    ) -> Result<(), Error> {
        let inner = &*self.inner;
        let key = &outgoing.routing_key;
        // What became of the last copy, where nobody knows: then an earlier one may be in the queue, whatever is said of a later.
        let mut last: Option<String> = None;
        let unknown = |what: &str, last: &str| Error::UnknownOutcome { reason: format!("{what} ({last})") };
        loop {
            let room = match (self.room(outgoing.bytes(), (deadline, budget)).await, &last) {
                (Ok(room), _) => room,
                (Err(_), Some(last)) => return Err(unknown("not sent again in time", last)),
                (Err(error), None) => return Err(error),
            };
            // Whoever waited for room may find the gate closed by those before it.
            if let Some(pause) = pass.is_held_back().filter(|_| last.is_none()) {
                return Err(full(key, pause));
            }
            let message = outgoing.message(&inner.request_exchange, &inner.reply_key, deadline);
            let published = tokio::time::timeout_at(deadline, room.publish(message).outcome()).await;
            let (code, message) = match published {
                Err(_) => {
                    let last = last.as_deref().unwrap_or("no answer from the broker");
                    return Err(unknown("no confirm before the deadline", last));
                }
                Ok(Outcome::Confirmed) => return Ok(()),
                Ok(Outcome::Refused) => {
                    let pause = pass.refused();
                    if last.is_none() {
                        return Err(full(key, pause));
                    }
                    // Its answer may come all the same.
                    tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
                    continue;
                }
                Ok(Outcome::NotSent(_)) => return Err(Error::Closed),
                Ok(Outcome::Unknown(reason)) => {
                    last = Some(reason);
                    tokio::time::sleep(AGAIN_PAUSE).await;
                    continue;
                }
                Ok(Outcome::Unroutable) => {
                    let message =
                        format!("no queue for `{key}`: no worker has served this model and tier yet");
                    (Code::UnknownModel, message)
                }
                Ok(Outcome::Forbidden(Forbidden::Access(message))) => (Code::Unauthorized, message),
                Ok(Outcome::Forbidden(Forbidden::Size(message))) => (Code::TooLarge, message),
            };
            pass.taken();
            return Err(match last {
                None => Error::Refused { code, message, retry_after: None },
                Some(last) => unknown(&message, &last),
            });
        }
    }
}

/// A request's way through the gate, until it is answered or given up.
#[derive(Debug)]
pub(crate) struct Pass {
    client: Client,
    routing_key: String,
    admission: Admission,
    is_answered: bool,
}

impl Pass {
    /// The broker has it.
    pub(super) fn taken(&mut self) {
        self.client.gate().taken(&self.routing_key, &mut self.admission);
    }

    /// Its answer is here.
    pub(crate) fn answered(&mut self) {
        self.is_answered = true;
    }

    fn refused(&mut self) -> Duration {
        self.client.gate().refused(
            &self.routing_key,
            &mut self.admission,
            Instant::now().into_std(),
            rand::random(),
        )
    }

    fn is_held_back(&self) -> Option<Duration> {
        self.client.gate().holds_back(&self.routing_key, &self.admission, Instant::now().into_std())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let now = Instant::now().into_std();
        self.client.gate().ended(&self.routing_key, &self.admission, self.is_answered, now);
    }
}

fn full(routing_key: &str, pause: Duration) -> Error {
    Error::Refused {
        code: Code::Overloaded,
        message: format!("the queue of `{routing_key}` is full"),
        retry_after: Some(pause),
    }
}
