//! Takes deliveries, refuses hostile ones, and sees each to its lane.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_common::amqp::consumer::{Accept, Delivery};
use millrace_common::amqp::message::{ReplyKey, RequestMeta, header, now_ms};
use millrace_common::amqp::properties::Properties;
use millrace_common::directory::Directory;
use millrace_common::protocol::codec::Limits;
use millrace_common::protocol::status::Code;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::admission::admit;
use super::clock::Clocks;
use super::decode::{code, decode};
use crate::catalogue::Catalogue;
use crate::job::{Answer, Duty, Job, Original, Settlement, Verdict};

/// The header that counts how often a request met a worker without its pinned version.
const VERSION_HOPS: &str = "x-version-hops";
/// Hops allowed while no worker is known to serve the version: the directory may not have heard of it yet.
const UNKNOWN_VERSION_HOPS: u64 = 3;
/// The longest pause between hops to a version that is served, as a retry step: about one in two workers has it, or one in
/// many, and the deadline runs.
const FAR_STEP: u64 = 2;
/// Headers of a request, at most. They pass through queues and workers that add to them, and must still fit one frame then.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// Lane budgets are counted in pieces of this many bytes, since semaphores count to `u32` only.
const BUDGET_UNIT: usize = 1024;

/// Dead letters held at a time: 16 MiB, or one that is larger.
pub const DEAD_BUDGET_UNITS: u32 = 16 << 10;

/// One model and tier: a queue this worker consumes, or several where the tier has shards. They share a lane and its budget.
#[derive(Debug)]
pub struct Route {
    /// Model name.
    pub model: String,
    /// Tier number, highest first.
    pub tier: usize,
    /// The only routing key that belongs in its queues.
    pub routing_key: String,
    /// The budget of a request that names none.
    pub default_budget: Duration,
    /// The lane's byte budget.
    pub budget: Arc<Semaphore>,
    /// Its whole size in units.
    pub budget_units: u32,
}

impl Route {
    /// A route whose lane may hold `lane_max_bytes`.
    pub fn new(
        model: String,
        tier: usize,
        routing_key: String,
        default_budget: Duration,
        lane_max_bytes: usize,
    ) -> Self {
        let budget_units = u32::try_from(lane_max_bytes / BUDGET_UNIT).unwrap_or(u32::MAX).max(1);
        let budget = Arc::new(Semaphore::new(budget_units as usize));
        Self { model, tier, routing_key, default_budget, budget, budget_units }
    }
}

/// What intake needs to know.
pub struct Intake {
    /// Routes.
    pub routes: Vec<Route>,
    /// The number of each queue's route.
    pub queues: HashMap<String, usize>,
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// Who else serves what.
    pub directory: Arc<Directory>,
    /// Bounds on messages.
    pub limits: Limits,
    /// Users whose `x-tenant` is believed.
    pub gateway_users: Vec<String>,
    /// The broker user of the workers.
    pub own_user: String,
    /// Where verdicts go.
    pub settlements: mpsc::Sender<Vec<Settlement>>,
    /// What becomes of the broker's dead letters.
    pub verdict_on_dead: fn(&Properties) -> Verdict,
    /// Bytes of dead letters held at a time.
    pub dead_budget: Arc<Semaphore>,
    /// Numbers for requests that run alone.
    pub sequence: AtomicU64,
    /// Those of the requesters.
    pub clocks: Mutex<Clocks>,
}

impl Accept for Intake {
    async fn accept(&self, delivery: Delivery) {
        let Some(route) = self.queues.get(&*delivery.queue).map(|&number| &self.routes[number]) else {
            return self.reap(delivery).await;
        };
        let (duty, meta) = match self.receive(route, delivery).await {
            Ok(received) => received,
            Err(settlement) => return self.settle(*settlement).await,
        };
        let is_urgent = meta.is_urgent;
        match self.prepare(route, &duty, meta).await {
            Err(verdict) => self.settle((duty, verdict)).await,
            Ok(Prepared { served, admitted, body_id, deadline }) => {
                let job = Job {
                    duty,
                    tier: route.tier,
                    inputs: admitted.inputs,
                    outputs: admitted.outputs,
                    body_id,
                    rows: admitted.rows,
                    key: admitted.key,
                    most_rows: admitted.most_rows,
                    is_urgent,
                    deadline,
                };
                if let Err(job) = served.pickup.push(route.tier, job) {
                    self.settle((job.duty, Verdict::GiveBack)).await;
                }
            }
        }
    }
}

struct Prepared<'a> {
    served: &'a crate::catalogue::ServedVersion,
    admitted: super::admission::Admitted,
    body_id: Option<String>,
    deadline: Option<Instant>,
}

impl Intake {
    /// Completes when no delivery is held any more: every duty is done and has given its budget back.
    pub async fn held(&self) {
        for route in &self.routes {
            let all = route.budget.acquire_many(route.budget_units).await;
            drop(all);
        }
        drop(self.dead_budget.acquire_many(DEAD_BUDGET_UNITS).await);
    }

    async fn settle(&self, settlement: Settlement) {
        // The receiver outlives every consumer; when it is gone the process is ending and the delivery comes again.
        let _ = self.settlements.send(vec![settlement]).await;
    }

    /// Answers the caller of a request that the broker dropped.
    async fn reap(&self, delivery: Delivery) {
        let verdict = (self.verdict_on_dead)(&delivery.properties);
        let (units, budget) = (budget_units(&delivery), &self.dead_budget);
        let budget = Arc::clone(budget).acquire_many_owned(units.min(DEAD_BUDGET_UNITS)).await;
        let reply_to = self.reply_to(&delivery.properties).ok().flatten();
        let duty =
            self.duty(delivery, reply_to, 0, "anonymous".into(), budget.expect("budgets are never closed"));
        self.settle((duty, verdict)).await;
    }

    /// Takes the duty on, or finds that the message must not be answered.
    async fn receive(
        &self,
        route: &Route,
        delivery: Delivery,
    ) -> Result<(Duty, RequestMeta), Box<Settlement>> {
        let units = budget_units(&delivery).min(route.budget_units);
        let budget =
            Arc::clone(&route.budget).acquire_many_owned(units).await.expect("budgets are never closed");
        let reply_to = self.reply_to(&delivery.properties);
        let hostile = hostility(route, &delivery, reply_to.as_ref().err());
        let meta = RequestMeta::read(&delivery.properties);
        let known = meta.as_ref().ok();
        let attempt = known.map_or(0, |meta| meta.attempt);
        let tenant = self.tenant(known);
        let mut duty = self.duty(delivery, reply_to.unwrap_or_default(), attempt, tenant, budget);
        duty.replies_per_message =
            known.map_or(1, |meta| u16::try_from(meta.replies_per_message).unwrap_or(u16::MAX));
        if let Some((reason, detail)) = hostile {
            duty.reply_to = None;
            return Err(Box::new((duty, Verdict::Dead { reason, detail })));
        }
        match meta {
            Ok(meta) => Ok((duty, meta)),
            Err(error) => {
                let answer = Answer::failure(Code::InvalidInput, error.to_string());
                Err(Box::new((duty, Verdict::Reply(answer))))
            }
        }
    }

    fn duty(
        &self,
        delivery: Delivery,
        reply_to: Option<ReplyKey>,
        attempt: u32,
        tenant: Arc<str>,
        budget: OwnedSemaphorePermit,
    ) -> Duty {
        Duty {
            request_id: RequestMeta::identity(&delivery.properties).map(str::to_owned),
            correlation_id: delivery.properties.correlation_id().map(str::to_owned),
            reply_to,
            replies_per_message: 1,
            attempt,
            tenant,
            arrived: delivery.received,
            original: Original {
                routing_key: delivery.routing_key,
                properties: delivery.properties,
                body: delivery.body,
            },
            ticket: delivery.ticket,
            budget,
        }
    }

    fn tenant(&self, meta: Option<&RequestMeta>) -> Arc<str> {
        let Some(user) = meta.and_then(|meta| meta.user_id.as_deref()) else { return "anonymous".into() };
        let claimed = meta.and_then(|meta| meta.claimed_tenant.as_deref());
        match claimed {
            Some(tenant) if self.speaks_for_others(user) => tenant.into(),
            _ => user.into(),
        }
    }

    /// Gateways publish for their callers, workers republish what they pass on.
    fn speaks_for_others(&self, user: &str) -> bool {
        user == self.own_user || self.gateway_users.iter().any(|gateway| gateway == user)
    }

    fn reply_to(&self, properties: &Properties) -> Result<Option<ReplyKey>, String> {
        let Some(text) = properties.reply_to() else { return Ok(None) };
        let key = ReplyKey::parse(text).map_err(|error| error.to_string())?;
        match properties.user_id() {
            Some(user) if properties.has_header(header::TENANT) && self.speaks_for_others(user) => {
                Ok(Some(key))
            }
            Some(user) if user != key.user() => {
                Err(format!("`reply_to` belongs to user `{}`, the message comes from `{user}`", key.user()))
            }
            _ => Ok(Some(key)),
        }
    }

    /// Decodes and admits the request, or finds its verdict.
    async fn prepare(&self, route: &Route, duty: &Duty, meta: RequestMeta) -> Result<Prepared<'_>, Verdict> {
        let fail = |code, message: String| Verdict::Reply(Answer::failure(code, message));
        let here = duty.arrived.elapsed();
        let received_ms = now_ms().saturating_sub(u64::try_from(here.as_millis()).unwrap_or(u64::MAX));
        let waited = self.waited(duty, &meta, received_ms);
        let budget = meta.remaining(waited).unwrap_or(route.default_budget);
        let remaining = budget.saturating_sub(here);
        if remaining.is_zero() {
            return Err(fail(
                Code::DeadlineExceeded,
                "the deadline passed before a worker could look at it".to_owned(),
            ));
        }
        let Some(served) = self.catalogue.find(&route.model, meta.model_version) else {
            return Err(self.pass_on(route, duty, &meta, remaining));
        };
        let body = duty.original.body.clone();
        let request = decode(body, meta.header_length, self.limits)
            .await
            .map_err(|error| fail(code(&error), error.to_string()))?;
        let body_id = request.id.clone();
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let admitted = admit(&served.rules, request, sequence)
            .map_err(|misfit| fail(misfit.code(), misfit.to_string()))?;
        let deadline = duty.arrived.checked_add(budget);
        Ok(Prepared { served, admitted, body_id, deadline })
    }

    /// How long a request had waited when it came.
    fn waited(&self, duty: &Duty, meta: &RequestMeta, received_ms: u64) -> Duration {
        let Some(published_ms) = meta.published_ms else { return Duration::ZERO };
        // What a worker has passed on tells the time by that worker's clock; and it is the broker's word that tells skew from wait.
        let is_first_hand = !duty.original.properties.has_header(VERSION_HOPS);
        let dropped_after = meta.budget.filter(|_| meta.has_expiration && is_first_hand);
        if let (Some(reply_to), Some(most)) = (&duty.reply_to, dropped_after) {
            let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
            return clocks.waited(reply_to.as_str(), published_ms, most, duty.arrived);
        }
        Duration::from_millis(received_ms.saturating_sub(published_ms))
    }

    /// A pinned version that is not here: on to another worker after a pause, unless nobody has it.
    fn pass_on(&self, route: &Route, duty: &Duty, meta: &RequestMeta, remaining: Duration) -> Verdict {
        let version = meta.model_version.unwrap_or(0);
        let hops = duty.original.properties.count(VERSION_HOPS).ok().flatten().unwrap_or(0);
        let is_served = self.directory.serves(&route.model, version);
        if hops >= UNKNOWN_VERSION_HOPS && !is_served {
            let message = format!("no worker serves version {version} of model `{}`", route.model);
            return Verdict::Reply(Answer::failure(Code::UnknownVersion, message));
        }
        let step = if is_served { scattered(&meta.request_id, hops) } else { hops };
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        // The message loses its `expiration` on the way, and with it the sign by which clocks that differ are told: from here
        // on our clock counts.
        let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX).max(1);
        let headers = vec![
            (VERSION_HOPS, hops + 1),
            (header::PUBLISHED_MS, now_ms()),
            (header::BUDGET_MS, remaining_ms),
        ];
        Verdict::Retry { step, headers }
    }
}

/// The retry step before the next hop of a request whose version is served elsewhere: any up to `hops` and [`FAR_STEP`].
///
/// The broker deals a queue's messages to its consumers in turn. Two requests that wait for each other's worker and come
/// back together are dealt to the wrong ones again, for ever, so each goes by a sequence of pauses of its own.
fn scattered(request_id: &str, hops: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (request_id, hops).hash(&mut hasher);
    hasher.finish() % (hops.min(FAR_STEP) + 1)
}

/// Bytes that a delivery will hold: JSON is kept as text and as tensors, which take up to four times the text (`[1,2]` of
/// INT64 or FP64).
fn budget_units(delivery: &Delivery) -> u32 {
    let is_binary = delivery.properties.has_header(header::HEADER_LENGTH);
    let bytes = delivery.body.len() * if is_binary { 1 } else { 5 };
    u32::try_from(bytes / BUDGET_UNIT + 1).unwrap_or(u32::MAX)
}

/// Why a message must not be answered nor run, if so. The broker's permissions do not catch these.
fn hostility(
    route: &Route,
    delivery: &Delivery,
    reply_to: Option<&String>,
) -> Option<(&'static str, String)> {
    if let Ok(Some(reason)) = delivery.properties.text(header::UNREADABLE) {
        return Some(("unreadable_properties", reason.to_owned()));
    }
    let header_bytes = delivery.properties.header_bytes();
    if header_bytes > MAX_HEADER_BYTES {
        let detail = format!("{header_bytes} bytes of headers, the limit is {MAX_HEADER_BYTES}");
        return Some(("oversized_headers", detail));
    }
    if delivery.properties.has_header("CC") || delivery.properties.has_header("BCC") {
        return Some(("sender_selected", "CC and BCC headers are refused: they evade tiers".to_owned()));
    }
    if delivery.routing_key != route.routing_key {
        let detail =
            format!("routing key `{}` in the queue of `{}`", delivery.routing_key, route.routing_key);
        return Some(("foreign_routing_key", detail));
    }
    reply_to.map(|problem| ("invalid_reply_to", problem.clone()))
}
