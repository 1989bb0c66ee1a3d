//! What a worker consumes of one model and tier.

use std::sync::Arc;
use std::time::Duration;

use millrace_common::amqp::consumer::Delivery;
use millrace_common::amqp::message::header;
use tokio::sync::Semaphore;

/// Lane budgets are counted in pieces of this many bytes, since semaphores count to `u32` only.
const BUDGET_UNIT: usize = 1024;

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

/// Bytes that a delivery will hold: JSON is kept as text and as tensors, which take up to four times the text (`[1,2]` of
/// INT64 or FP64).
pub(super) fn budget_units(delivery: &Delivery) -> u32 {
    let is_binary = delivery.properties.has_header(header::HEADER_LENGTH);
    let bytes = delivery.body.len() * if is_binary { 1 } else { 5 };
    u32::try_from(bytes / BUDGET_UNIT + 1).unwrap_or(u32::MAX)
}
