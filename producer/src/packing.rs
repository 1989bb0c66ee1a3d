//! Packs on their way: sent when they are complete or their linger is over, answered member by member.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use millrace_common::lifecycle::Lifecycle;
use millrace_common::protocol::status::Code;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::Error;
use crate::handle::Handle;
use crate::pack::{self, Key, Lots, Traits};
use crate::replies::{Receipt, Reply, Unclaimed};
use crate::request::Request;
use crate::response::Response;

/// How long the directory's word on a model counts.
const LIMIT_COUNTS_FOR: Duration = Duration::from_millis(500);
/// A member with less time left is not sent again alone: it could not be answered in time.
const LEAST_LEFT: Duration = Duration::from_millis(10);
/// Rows of a pack, at most, whatever workers announce.
const MOST_ROWS: u32 = 4096;

/// Requests of a client that wait for company, and packs on their way.
#[derive(Debug)]
pub(crate) struct Packing {
    linger: Duration,
    state: Mutex<State>,
    tasks: Lifecycle,
}

#[derive(Debug, Default)]
struct State {
    lots: Lots<Member>,
    limits: HashMap<String, HashMap<Option<u64>, (u32, Instant)>>,
}

/// A request that travels in a pack.
#[derive(Debug)]
pub(crate) struct Member {
    request: Request,
    deadline: Instant,
    budget: Duration,
    replied: oneshot::Sender<Part>,
    /// Told once the broker has the pack, where somebody wants to know.
    taken: Option<oneshot::Sender<()>>,
}

/// What comes of a member.
pub(crate) type Part = Result<(Result<Response, Error>, Unclaimed), Error>;

/// Counts a request or pack as away until it is dropped.
#[derive(Debug)]
pub(crate) struct Away {
    packing: Arc<Packing>,
    key: Key,
}

impl Drop for Away {
    fn drop(&mut self) {
        self.packing.state().lots.answered(&self.key);
    }
}

/// How a request goes.
pub(crate) enum Way {
    /// By itself; others of its kind may wait for company while it is away.
    Alone(Request, Option<Away>),
    /// In a pack. The first channel tells when the broker has it, where that was asked for; one that is closed instead has
    /// the reason in the handle.
    Packed(oneshot::Receiver<()>, Handle),
}

impl Packing {
    pub(crate) fn new(linger: Duration) -> Self {
        Self { linger, state: Mutex::default(), tasks: Lifecycle::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Operations on collections; a panic cannot leave them half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the way of a request, and sends the pack that it completes.
    pub(crate) fn way(
        self: &Arc<Self>,
        client: &Client,
        request: Request,
        budget: Duration,
        tell: bool,
    ) -> Way {
        if self.linger.is_zero() {
            return Way::Alone(request, None);
        }
        let Some(traits) = pack::traits(&request, budget, client.keeps_replies()) else {
            return Way::Alone(request, None);
        };
        let mut state = self.state();
        let most = if state.lots.is_away(&traits.key) { state.limit(client, &request) } else { 1 };
        if traits.rows.saturating_mul(2) > most || client.is_held_back(&request) {
            state.lots.send(&traits.key);
            return Way::Alone(request, Some(Away { packing: Arc::clone(self), key: traits.key }));
        }
        let deadline = Instant::now() + budget;
        let (replied, part) = oneshot::channel();
        let (taken, was_taken) = oneshot::channel();
        let member = Member { request, deadline, budget, replied, taken: tell.then_some(taken) };
        let Traits { key, .. } = &traits;
        let added = state.lots.add(&traits, most, member);
        if let Some(members) = added.complete {
            self.send(&mut state, client, key.clone(), members);
        }
        drop(state);
        if let Some(number) = added.opened {
            let (packing, client, key) = (Arc::clone(self), client.clone(), key.clone());
            self.tasks.spawn(async move {
                tokio::time::sleep(packing.linger).await;
                let mut state = packing.state();
                if let Some(members) = state.lots.close(&key, number) {
                    packing.send(&mut state, &client, key, members);
                }
            });
        }
        Way::Packed(was_taken, Handle::packed(part, deadline, budget, client.clone()))
    }

    fn send(self: &Arc<Self>, state: &mut State, client: &Client, key: Key, members: Vec<Member>) {
        state.lots.send(&key);
        let away = Away { packing: Arc::clone(self), key };
        let client = client.clone();
        self.tasks.spawn(async move {
            travel(&client, members).await;
            drop(away);
        });
    }

    /// Waits until every pack is answered or given up.
    pub(crate) async fn finish(&self, grace: Duration) {
        self.tasks.stopped(grace).await;
    }
}

impl State {
    /// Rows of a pack, at most, by what the workers announce.
    fn limit(&mut self, client: &Client, request: &Request) -> u32 {
        let known = self.limits.get(&request.model).and_then(|versions| versions.get(&request.version));
        match known {
            Some((rows, at)) if at.elapsed() < LIMIT_COUNTS_FOR => *rows,
            _ => {
                let rows = client.directory().pack_rows(&request.model, request.version).min(MOST_ROWS);
                let versions = self.limits.entry(request.model.clone()).or_default();
                versions.insert(request.version, (rows, Instant::now()));
                rows
            }
        }
    }
}

/// Sends a pack and hands its answer out. One that fails is sent again member by member, so that only the guilty one fails.
async fn travel(client: &Client, members: Vec<Member>) {
    let Some((earliest, mut members)) = still_wanted(members) else { return };
    if members.len() == 1 {
        return again(client, members).await;
    }
    let requests: Vec<&Request> = members.iter().map(|member| &member.request).collect();
    let whole = whole(&requests, earliest, client.keeps_replies());
    let handle = match client.submit_alone(whole, None).await {
        Ok(handle) => handle,
        Err(error) if concerns_all(&error) => return fail(members, &error),
        Err(_) => return again(client, members).await,
    };
    for taken in members.iter_mut().filter_map(|member| member.taken.take()) {
        let _ = taken.send(());
    }
    let reply = tokio::select! {
        reply = handle.reply() => reply,
        () = given_up(&mut members) => return,
    };
    match reply {
        Ok(Reply { outcome: Ok(response), receipt }) => {
            let rows: Vec<u32> = members.iter().map(Member::rows).collect();
            let Some(parts) = response.parts(&rows) else {
                receipt.acknowledge();
                return again(client, members).await;
            };
            let receipts = receipt.share(members.len());
            for ((member, part), receipt) in members.into_iter().zip(parts).zip(receipts) {
                member.answer(part, receipt);
            }
        }
        Ok(Reply { outcome: Err(error), receipt }) if concerns_all(&error) => {
            let receipts = receipt.share(members.len());
            for (member, receipt) in members.into_iter().zip(receipts) {
                member.end(Ok((Err(error.clone()), Unclaimed::new(receipt))));
            }
        }
        Ok(Reply { outcome: Err(_), receipt }) => {
            again(client, members).await;
            receipt.acknowledge();
        }
        Err(error) if concerns_all(&error) => fail(members, &error),
        Err(_) => again(client, members).await,
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

fn fail(members: Vec<Member>, error: &Error) {
    for member in members {
        member.end(Err(error.clone()));
    }
}

/// Sends each member by itself.
async fn again(client: &Client, members: Vec<Member>) {
    join_all(members.into_iter().map(|member| alone(client, member))).await;
}

async fn alone(client: &Client, mut member: Member) {
    let left = member.deadline.saturating_duration_since(Instant::now());
    if left < LEAST_LEFT {
        return member.exceed();
    }
    let request = member.request.clone().deadline(left);
    let handle = match client.submit_alone(request, None).await {
        Ok(handle) => handle,
        Err(error) => return member.end(Err(error)),
    };
    if let Some(taken) = member.taken.take() {
        let _ = taken.send(());
    }
    let reply = tokio::select! {
        reply = handle.reply() => reply,
        () = member.replied.closed() => return,
    };
    member.end(reply.map(|Reply { outcome, receipt }| (outcome, Unclaimed::new(receipt))));
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

    fn answer(self, part: Response, receipt: Receipt) {
        let ids = (self.request.correlation_id.clone(), self.request.body.id.clone());
        self.end(Ok((Ok(part.addressed(ids.0, ids.1)), Unclaimed::new(receipt))));
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
