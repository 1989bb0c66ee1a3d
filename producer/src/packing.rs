//! Requests that wait for company, and the packs that they travel in.

mod travel;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_common::lifecycle::Lifecycle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::client::Client;
use crate::handle::Handle;
use crate::pack::{self, Added, Key, Lots};
use crate::request::Request;

pub(crate) use self::travel::Part;
use self::travel::{Counted, Member, travel};

/// How long the directory's word on a model counts.
const LIMIT_COUNTS_FOR: Duration = Duration::from_millis(500);
/// How long it counts that the directory has no word on one: it will hear of it any moment.
const SILENCE_COUNTS_FOR: Duration = Duration::from_millis(20);
/// How long packs stay smaller after one that failed.
const CAUTION: Duration = Duration::from_secs(30);
/// Packs do not get smaller than this: one caller's bad rows must not end packing for all.
const CAREFUL: u32 = 4;
/// Models and versions whose limits are remembered, about.
const LIMITS: usize = 256;
/// A request with less time than this waits for nobody.
const LEAST_LEFT: Duration = Duration::from_millis(10);
/// Rows of a pack, at most, whatever workers announce.
const MOST_ROWS: u32 = 4096;

/// Requests of a client that wait for company, and packs on their way.
#[derive(Debug)]
pub(crate) struct Packing {
    linger: Duration,
    state: Mutex<State>,
    /// Members that have no answer.
    waiting: Arc<AtomicUsize>,
    tasks: Lifecycle,
    /// The runtime that the client was made on: callers may use it from others, which may end before their company does.
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
struct State {
    lots: Lots<Member>,
    limits: HashMap<(String, Option<u64>), Limit>,
}

/// Rows of a pack to one model version.
#[derive(Debug)]
struct Limit {
    /// `None` while no worker is known.
    announced: Option<u32>,
    heard: Instant,
    /// No more than this until then.
    caution: Option<(u32, Instant)>,
}

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
    /// In a pack. The channel, where one was asked for, tells when the broker has it; one that is closed instead has the reason in
    /// the handle.
    Packed(Option<oneshot::Receiver<()>>, Handle),
}

impl Packing {
    /// Call it on the client's runtime.
    pub(crate) fn new(linger: Duration) -> Self {
        let runtime = tokio::runtime::Handle::current();
        Self { linger, state: Mutex::default(), waiting: Arc::default(), tasks: Lifecycle::new(), runtime }
    }

    /// Whether each request goes by itself.
    pub(crate) fn is_off(&self) -> bool {
        self.linger.is_zero()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Operations on collections; a panic cannot leave them half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client's runtime.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Members that have no answer.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Finds the way of a request, and sends the pack that it completes. `tell` whether to tell when it is taken.
    pub(crate) fn way(
        self: &Arc<Self>,
        client: &Client,
        request: Request,
        budget: Duration,
        tell: bool,
    ) -> Way {
        if self.is_off() || budget < self.linger * 8 + LEAST_LEFT {
            return Way::Alone(request, None);
        }
        let Some(traits) = pack::traits(&request, budget, client.keeps_replies()) else {
            return Way::Alone(request, None);
        };
        let mut state = self.state();
        let most = if state.lots.wants_company(&traits.key) { state.limit(client, &request) } else { 1 };
        if traits.rows.saturating_mul(2) > most || client.is_held_back(&request) {
            state.lots.send(&traits.key);
            return Way::Alone(request, Some(Away { packing: Arc::clone(self), key: traits.key }));
        }
        let deadline = Instant::now() + budget;
        let (replied, part) = oneshot::channel();
        let (taken, was_taken) = tell.then(oneshot::channel).unzip();
        let counted = Counted::new(&self.waiting);
        let member = Member { request, deadline, budget, replied, taken, _counted: counted };
        let Added { complete, opened } = state.lots.add(&traits, most, member);
        if complete.is_some() {
            state.lots.send(&traits.key);
        }
        // Tasks are spawned, and dropped where the runtime is ending, only without the lock: they count as away.
        drop(state);
        if let Some(members) = complete {
            self.send(client, traits.key.clone(), members);
        }
        if let Some(number) = opened {
            let (packing, client, key) = (Arc::clone(self), client.clone(), traits.key);
            self.spawn(async move {
                tokio::time::sleep(packing.linger).await;
                if let Some(members) = packing.close(&key, number) {
                    packing.send(&client, key, members);
                }
            });
        }
        Way::Packed(was_taken, Handle::packed(part, deadline, budget, client.clone()))
    }

    fn close(&self, key: &Key, number: u64) -> Option<Vec<Member>> {
        let mut state = self.state();
        let members = state.lots.close(key, number)?;
        state.lots.send(key);
        Some(members)
    }

    /// Sends a pack that is noted as sent.
    fn send(self: &Arc<Self>, client: &Client, key: Key, members: Vec<Member>) {
        let away = Away { packing: Arc::clone(self), key };
        let client = client.clone();
        self.spawn(async move {
            travel(&client, &away.packing, members).await;
            drop(away);
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _on = self.runtime.enter();
        self.tasks.spawn(task);
    }

    /// Halves the packs like this one for a while: another row of it may be guilty, or all their answers too large together.
    fn take_care(&self, request: &Request, rows: u32) {
        let key = (request.model.clone(), request.version);
        if let Some(limit) = self.state().limits.get_mut(&key) {
            let now = Instant::now();
            let in_force = limit.rows(now).min(rows.max(CAREFUL));
            limit.caution = Some(((in_force / 2).max(CAREFUL), now + CAUTION));
        }
    }

    /// Waits until every pack is answered or given up.
    pub(crate) async fn finish(&self, grace: Duration) {
        self.tasks.stopped(grace).await;
    }
}

impl State {
    /// Rows of a pack, at most, by what the workers announce.
    fn limit(&mut self, client: &Client, request: &Request) -> u32 {
        let now = Instant::now();
        let is_fresh =
            |limit: &Limit| limit.is_fresh(now) || limit.caution.is_some_and(|(_, until)| until > now);
        if self.limits.len() > LIMITS {
            self.limits.retain(|_, limit| is_fresh(limit));
        }
        let ask = || client.directory().pack_rows(&request.model, request.version);
        let limit = self.limits.entry((request.model.clone(), request.version)).or_insert_with(|| Limit {
            announced: ask(),
            heard: now,
            caution: None,
        });
        if !limit.is_fresh(now) {
            (limit.announced, limit.heard) = (ask(), now);
        }
        limit.rows(now)
    }
}

impl Limit {
    fn is_fresh(&self, now: Instant) -> bool {
        let counts_for = if self.announced.is_some() { LIMIT_COUNTS_FOR } else { SILENCE_COUNTS_FOR };
        now.duration_since(self.heard) < counts_for
    }

    fn rows(&self, now: Instant) -> u32 {
        let announced = self.announced.unwrap_or(1).min(MOST_ROWS);
        match self.caution {
            Some((rows, until)) if until > now => announced.min(rows),
            _ => announced,
        }
    }
}
