//! A pack on its way: sent, answered member by member, and sent again member by member where it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use millrace_common::protocol::status::Code;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Packing;
use crate::client::Client;
use crate::error::Error;
use crate::pack;
use crate::replies::{Receipt, Reply, Unclaimed};
use crate::request::Request;
use crate::response::Response;

/// A request that travels in a pack.
#[derive(Debug)]
pub(crate) struct Member {
    pub(super) request: Request,
    pub(super) deadline: Instant,
    pub(super) budget: Duration,
    pub(super) replied: oneshot::Sender<Part>,
    /// Told once the broker has the pack, where somebody wants to know.
    pub(super) taken: Option<oneshot::Sender<()>>,
    pub(super) _counted: Counted,
}

/// Counts a member until it is dropped.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What comes of a member.
pub(crate) type Part = Result<(Result<Response, Error>, Unclaimed), Error>;

/// Sends a pack and hands its answer out. One that fails is sent again member by member, so that only the guilty one fails.
pub(super) async fn travel(client: &Client, packing: &Packing, members: Vec<Member>) {
    let Some((earliest, mut members)) = still_wanted(members) else { return };
    if members.len() == 1 {
        return each(client, members, false).await;
    }
    let requests: Vec<&Request> = members.iter().map(|member| &member.request).collect();
    let whole = whole(&requests, earliest, client.keeps_replies());
    let sent = tokio::select! {
        sent = client.submit_alone(whole, None) => sent,
        () = given_up(&mut members) => return,
    };
    let is_taken = sent.is_ok();
    let replied = match sent {
        Ok(handle) => {
            for taken in members.iter_mut().filter_map(|member| member.taken.take()) {
                let _ = taken.send(());
            }
            tokio::select! {
                replied = handle.reply() => replied,
                () = given_up(&mut members) => return,
            }
        }
        Err(error) => Err(error),
    };
    let rows: Vec<u32> = members.iter().map(Member::rows).collect();
    let (error, receipt) = match replied {
        Ok(Reply { outcome: Ok(response), receipt }) => match response.parts(&rows) {
            Some(parts) => return answer(members, parts, receipt),
            None => {
                let reason = "its outputs do not have the rows of its inputs".to_owned();
                (Error::MalformedReply { reason }, Some(receipt))
            }
        },
        Ok(Reply { outcome: Err(error), receipt }) => (error, Some(receipt)),
        Err(error) => (error, None),
    };
    // At once, also where members are sent again: held, it would keep their answers out of the prefetch window. A process that
    // ends before those come finds their requests unanswered, as it would with the reply of a failed pack.
    receipt.into_iter().for_each(Receipt::acknowledge);
    if concerns_all(&error) {
        return members.into_iter().for_each(|member| member.end(Err(error.clone())));
    }
    if error.code() == Code::DeadlineExceeded {
        // A fleet that is late is not helped by more messages: only those with much more time than the others try again.
        let now = Instant::now();
        let has_time = |member: &Member| member.deadline.saturating_duration_since(now) > member.budget / 8;
        let (patient, late): (Vec<_>, Vec<_>) = members.into_iter().partition(has_time);
        late.into_iter().for_each(Member::exceed);
        return each(client, patient, is_taken).await;
    }
    packing.take_care(&members[0].request, rows.iter().sum());
    each(client, members, is_taken).await;
}

fn answer(members: Vec<Member>, parts: Vec<Response>, receipt: Receipt) {
    let receipts = receipt.share(members.len());
    for ((member, part), receipt) in members.into_iter().zip(parts).zip(receipts) {
        let (correlation_id, body_id) =
            (member.request.correlation_id.clone(), member.request.body.id.clone());
        member.end(Ok((Ok(part.addressed(correlation_id, body_id)), Unclaimed::new(receipt))));
    }
}

/// The request that stands for all of them.
fn whole(requests: &[&Request], deadline: Instant, has_manifest: bool) -> Request {
    let mut body = pack::join(requests);
    let mut correlation_id = None;
    if has_manifest {
        body.id = Some(pack::manifest(requests));
        correlation_id = Some(pack::MARK.to_owned());
    }
    let first = requests[0];
    Request {
        model: first.model.clone(),
        version: first.version,
        tier: first.tier.clone(),
        deadline: Some(deadline.saturating_duration_since(Instant::now())),
        correlation_id,
        is_urgent: false,
        refuses_degraded: first.refuses_degraded,
        encoding: first.encoding,
        body,
    }
}

/// Members that somebody waits for and that have time left, and the earliest of their deadlines.
fn still_wanted(members: Vec<Member>) -> Option<(Instant, Vec<Member>)> {
    let now = Instant::now();
    let mut wanted = Vec::with_capacity(members.len());
    for member in members {
        if member.deadline <= now {
            member.exceed();
        } else if !member.replied.is_closed() {
            wanted.push(member);
        }
    }
    let earliest = wanted.iter().map(|member| member.deadline).min()?;
    Some((earliest, wanted))
}

/// Whether what happened to a pack would have happened to each of its members.
fn concerns_all(error: &Error) -> bool {
    match error {
        Error::Refused { code, .. } | Error::Failed { code, .. } => !matches!(
            code,
            Code::InvalidInput
                | Code::DeadlineExceeded
                | Code::Poison
                | Code::BackendError
                | Code::BackendTimeout
                | Code::TooLarge
        ),
        Error::UnknownOutcome { .. } | Error::Closed => true,
        Error::Invalid(_) | Error::DeadlineExceeded { .. } | Error::MalformedReply { .. } => false,
    }
}

/// Sends each member by itself.
async fn each(client: &Client, members: Vec<Member>, is_taken: bool) {
    join_all(members.into_iter().map(|member| alone(client, member, is_taken))).await;
}

/// Sends a member by itself. Where the broker had taken its pack, a queue that is full by now is waited for.
async fn alone(client: &Client, mut member: Member, is_taken: bool) {
    loop {
        let left = member.deadline.saturating_duration_since(Instant::now());
        let request = member.request.clone().deadline(left);
        let sent = tokio::select! {
            sent = client.submit_alone(request, None) => sent,
            () = member.replied.closed() => return,
        };
        let pause = match sent {
            Ok(handle) => {
                if let Some(taken) = member.taken.take() {
                    let _ = taken.send(());
                }
                let reply = tokio::select! {
                    reply = handle.reply() => reply,
                    () = member.replied.closed() => return,
                };
                return member
                    .end(reply.map(|Reply { outcome, receipt }| (outcome, Unclaimed::new(receipt))));
            }
            Err(Error::Refused { code: Code::Overloaded, retry_after: Some(pause), .. }) if is_taken => pause,
            Err(error) => return member.end(Err(error)),
        };
        if Instant::now() + pause >= member.deadline {
            return member.exceed();
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = member.replied.closed() => return,
        }
    }
}

/// Completes when nobody waits for any of them any more.
async fn given_up(members: &mut [Member]) {
    for member in members {
        member.replied.closed().await;
    }
}

impl Member {
    fn rows(&self) -> u32 {
        let first = self.request.body.inputs.first().and_then(|input| input.shape.first());
        first.and_then(|&rows| u32::try_from(rows).ok()).unwrap_or(0)
    }

    fn exceed(self) {
        let budget = self.budget;
        self.end(Err(Error::DeadlineExceeded { budget }));
    }

    /// Where nobody waits any more, the part's receipt is acknowledged as it is dropped.
    fn end(self, part: Part) {
        let _ = self.replied.send(part);
    }
}
