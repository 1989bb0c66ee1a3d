//! Takes deliveries, refuses hostile ones, and sees each to its lane.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_common::amqp::consumer::{Accept, Delivery};
use millrace_common::amqp::message::{RequestMeta, header, now_ms, since_epoch};
use millrace_common::amqp::properties::Properties;
use millrace_common::control::Control;
use millrace_common::directory::Directory;
use millrace_common::protocol::codec::Limits;
use millrace_common::protocol::status::Code;
use tokio::sync::{Notify, Semaphore, mpsc};

use super::admission::admit;
use super::cancelled::Cancelled;
use super::clock::Clocks;
use super::decode::{code, decode};
use super::remembered::Remembered;
use super::route::{Route, budget_units};
use super::solo::Solo;
use super::suspects::{POISON, Suspicion, carried, redeliveries, suspicion};
use crate::catalogue::{Catalogue, ServedVersion};
use crate::guard::ladder::{Instead, descend, refusal};
use crate::job::{Answer, Duty, Job, Settlement, Verdict};
use crate::model::instances::Instances;

/// Hops allowed while no worker is known to serve the version: the directory may not have heard of it yet.
const UNKNOWN_VERSION_HOPS: u64 = 3;
/// The longest pause between hops to a version that is served, as a retry step: about one in two workers has it, or one in
/// many, and the deadline runs.
const FAR_STEP: u64 = 2;
/// Dead letters held at a time: 16 MiB, or one that is larger.
pub const DEAD_BUDGET_UNITS: u32 = 16 << 10;

/// What intake needs to know.
pub struct Intake {
    /// Routes.
    pub routes: Vec<Route>,
    /// The number of each queue's route.
    pub queues: HashMap<String, usize>,
    /// Whether the tiers' queues count redeliveries.
    pub counts_redeliveries: bool,
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// What runs it.
    pub instances: Arc<Instances>,
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
    pub verdict_on_dead: Box<dyn Fn(&Properties) -> Verdict + Send + Sync>,
    /// Bytes of dead letters held at a time.
    pub dead_budget: Arc<Semaphore>,
    /// Suspects on their way.
    pub solo: Solo,
    /// Where cancellations come, and questions who is there.
    pub control_queue: String,
    /// Told of the latter.
    pub asked: Arc<Notify>,
    /// Those that came.
    pub cancelled: Arc<Cancelled>,
    /// What was answered, by reply key, and comes again.
    pub answered: Arc<Remembered>,
    /// Those of the requesters.
    pub clocks: Mutex<Clocks>,
}

impl Accept for Intake {
    async fn accept(&self, delivery: Delivery) {
        match self.queues.get(&*delivery.queue).map(|&number| &self.routes[number]) {
            Some(route) => self.accept_from(route, delivery, false).await,
            None if *delivery.queue == *self.control_queue => self.hear(delivery),
            None => self.reap(delivery).await,
        }
    }
}

struct Prepared {
    served: Arc<ServedVersion>,
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
        self.solo.done().await;
    }

    /// Takes a delivery from a queue of suspects.
    pub async fn accept_suspect(&self, delivery: Delivery) {
        match self.routes.iter().find(|route| route.routing_key == delivery.routing_key) {
            Some(route) => self.accept_from(route, delivery, true).await,
            None => self.pass_suspect_on(delivery).await,
        }
    }

    /// A suspect of a tier that this worker does not know: by its tier's queue to one that does.
    async fn pass_suspect_on(&self, delivery: Delivery) {
        let (properties, running) = (&delivery.properties, self.solo.running().await);
        let before = redeliveries(properties, delivery.is_redelivered, true, &self.own_user);
        let headers = vec![(header::REDELIVERIES, carried(properties, before, true, &self.own_user))];
        let duty = self.duty(delivery, None, 0, "anonymous".into(), running);
        self.settle((duty, Verdict::Retry { step: FAR_STEP as usize, headers })).await;
    }

    async fn accept_from(&self, route: &Route, delivery: Delivery, is_solo: bool) {
        let (mut duty, meta) = match self.receive(route, delivery, is_solo).await {
            Ok(received) => received,
            Err(settlement) => return self.settle(*settlement).await,
        };
        loop {
            let prepared = match self.prepare(route, &duty, &meta).await {
                Ok(prepared) => prepared,
                Err(verdict) => return self.settle((duty, verdict)).await,
            };
            let Err((served, job)) = self.place(route, duty, prepared, meta.is_urgent).await else { return };
            if self.catalogue.has(&served) {
                // The worker stops.
                return self.settle((job.duty, Verdict::GiveBack)).await;
            }
            // It has gone since it was found: the request is its successor's.
            duty = Duty { descent: None, ..job.duty };
        }
    }

    /// Sees a request to the version that is to run it, or down its ladder.
    ///
    /// # Errors
    /// The version that takes nothing any more, and the request.
    async fn place(
        &self,
        route: &Route,
        duty: Duty,
        prepared: Prepared,
        is_urgent: bool,
    ) -> Result<(), (Arc<ServedVersion>, Job)> {
        let Prepared { served, admitted, body_id, deadline } = prepared;
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
        let now = Instant::now();
        match served.pause(&job, now) {
            None if job.duty.is_solo => {
                served.pickup.push_alone(route.tier, job).map_err(|job| (served, job))
            }
            // Nothing else should run a suspect.
            Some(pause) if job.duty.is_solo => {
                self.settle((job.duty, Verdict::Reply(refusal(&served.model, pause)))).await;
                Ok(())
            }
            None => served.pickup.push(route.tier, job).map_err(|job| (served, job)),
            Some(pause) => {
                let refusal = refusal(&served.model, pause);
                match descend(job, &served, &self.catalogue, pause.0, refusal, now) {
                    Instead::Run(other, job) => {
                        other.pickup.push(route.tier, job).map_err(|job| (other, job))
                    }
                    Instead::Settled(settlement) => {
                        self.settle(settlement).await;
                        Ok(())
                    }
                }
            }
        }
    }

    async fn settle(&self, settlement: Settlement) {
        // The receiver outlives every consumer; when it is gone the process is ending and the delivery comes again.
        let _ = self.settlements.send(vec![settlement]).await;
    }

    /// Takes what all workers are told.
    fn hear(&self, delivery: Delivery) {
        let (properties, control) = Control::hear(delivery);
        if let Some(control) = control {
            let claimed = properties.text(header::TENANT).ok().flatten();
            self.cancelled.add(&self.tenant(properties.user_id(), claimed), control.cancel);
            if control.announce {
                self.asked.notify_one();
            }
        }
    }

    /// Answers the caller of a request that the broker dropped.
    async fn reap(&self, delivery: Delivery) {
        let verdict = (self.verdict_on_dead)(&delivery.properties);
        let (units, budget) = (budget_units(&delivery), &self.dead_budget);
        let budget = Arc::clone(budget).acquire_many_owned(units.min(DEAD_BUDGET_UNITS)).await;
        let budget = budget.expect("budgets are never closed");
        // No worker has looked at one that died in its queue.
        let (reply_to, verdict) = match self.reply_to(&delivery.properties) {
            Ok(reply_to) => (reply_to, verdict),
            Err(detail) => (None, Verdict::Dead { reason: "invalid_reply_to", detail }),
        };
        let duty = self.duty(delivery, reply_to, 0, "anonymous".into(), budget);
        self.settle((duty, verdict)).await;
    }

    /// Decodes and admits the request, or finds its verdict.
    async fn prepare(&self, route: &Route, duty: &Duty, meta: &RequestMeta) -> Result<Prepared, Verdict> {
        let fail = |code, message: String| Verdict::Reply(Answer::failure(code, message));
        let here = duty.arrived.elapsed();
        let waited = self.waited(duty, meta, since_epoch().saturating_sub(here));
        let budget = meta.remaining(waited).unwrap_or(route.default_budget);
        let remaining = budget.saturating_sub(here);
        if remaining.is_zero() {
            return Err(fail(
                Code::DeadlineExceeded,
                "the deadline passed before a worker could look at it".to_owned(),
            ));
        }
        if self.cancelled.contains(&duty.tenant, duty.request_id.as_deref()) {
            return Err(Verdict::cancelled());
        }
        let suspicion = suspicion(duty.redeliveries);
        if suspicion == Suspicion::Strong && !duty.is_solo {
            let headers = self.onward(duty, remaining).into();
            return Err(Verdict::Solo { headers, moving: self.solo.moving().await });
        }
        if duty.redeliveries >= POISON {
            return Err(Verdict::poison());
        }
        let Some(served) = self.catalogue.find(&route.model, meta.model_version) else {
            return Err(self.pass_on(route, duty, meta, remaining));
        };
        let body = duty.original.body.clone();
        let request = decode(body, meta.header_length, self.limits)
            .await
            .map_err(|error| fail(code(&error), error.to_string()))?;
        let body_id = request.id.clone();
        let mut admitted = admit(&served.rules, request, self.catalogue.sequence())
            .map_err(|misfit| fail(misfit.code(), misfit.to_string()))?;
        if suspicion != Suspicion::None {
            admitted.key = admitted.key.suspected();
        }
        let deadline = duty.arrived.checked_add(budget);
        Ok(Prepared { served, admitted, body_id, deadline })
    }

    /// How long a request had waited when it came, at `received` since the epoch.
    fn waited(&self, duty: &Duty, meta: &RequestMeta, received: Duration) -> Duration {
        let Some(published_ms) = meta.published_ms else { return Duration::ZERO };
        // What a worker has passed on tells the time by that worker's clock; and it is the broker's word that tells skew from wait.
        let is_first_hand = !duty.original.properties.has_header(header::REDELIVERIES);
        let dropped_after = meta.budget.filter(|_| meta.has_expiration && is_first_hand);
        if let (Some(reply_to), Some(most)) = (&duty.reply_to, dropped_after) {
            let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
            return clocks.waited(reply_to.as_str(), published_ms, most, duty.arrived);
        }
        received.saturating_sub(Duration::from_millis(published_ms))
    }

    /// A pinned version that is not here: on to another worker after a pause, unless nobody has it.
    fn pass_on(&self, route: &Route, duty: &Duty, meta: &RequestMeta, remaining: Duration) -> Verdict {
        let version = meta.model_version.unwrap_or(0);
        let hops = duty.original.properties.count(header::VERSION_HOPS).ok().flatten().unwrap_or(0);
        let is_served = self.directory.serves(&route.model, version);
        if hops >= UNKNOWN_VERSION_HOPS && !is_served {
            let message = format!("no worker serves version {version} of model `{}`", route.model);
            return Verdict::Reply(Answer::failure(Code::UnknownVersion, message));
        }
        let step = if is_served { scattered(&meta.request_id, hops) } else { hops };
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        let headers = self.onward(duty, remaining).into_iter().chain([(header::VERSION_HOPS, hops + 1)]);
        Verdict::Retry { step, headers: headers.collect() }
    }

    /// What a request takes along that a worker publishes again. It loses its `expiration` on the way, and with it the sign by which
    /// clocks that differ are told: from here on our clock counts. So do redeliveries, which the next queue does not know of.
    fn onward(&self, duty: &Duty, remaining: Duration) -> [(&'static str, u64); 3] {
        let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX).max(1);
        let before = carried(&duty.original.properties, duty.redeliveries, duty.is_solo, &self.own_user);
        [(header::PUBLISHED_MS, now_ms()), (header::BUDGET_MS, remaining_ms), (header::REDELIVERIES, before)]
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
