//! Whose turn it is: deficit round robin between the tiers of one model version.
//!
//! Every tier with waiting requests earns credit in proportion to its weight, once a round; serving a request costs its share
//! of the time that its batch takes: as learned from the batches before when it is formed, and corrected when it has run.
//! The highest tier with credit goes first, and a tier that was empty gets its round's credit at once, if it has not had
//! it, so that its request is next after those of higher tiers that have credit too. Credit is not saved up while a tier is
//! empty, and debt is not forgiven: only rounds pay it off. Inside a tier its tenants share alike, see [`super::lane`].
//!
//! Plain code: no clock, no channel; `now` is a parameter. Source of the algorithm: M. Shreedhar, G. Varghese,
//! "Efficient Fair Queuing using Deficit Round Robin", SIGCOMM 1995.

mod company;

use std::time::{Duration, Instant};

use super::batcher::BatchPolicy;
use super::cap::Caps;
use super::cost::CostCurve;
use super::lane::{Lane, Waiting};
use super::tier_set::TierSet;

/// Batches that a tier can owe.
const MOST_DEBT: i64 = 4;
/// The time that a pack's rows take, at most. A message costs client, broker and worker a quarter of a millisecond together
/// (docs/benchmarks.md), which is little beside this.
const PACK_TIME: Duration = Duration::from_millis(20);
/// One in so many full batches is of another size than is known to pay, twice as large and half as large in turn. Else a size next to
/// it that was dear once would be dear for ever. Requests of many rows are not split for it.
const TRIED: u32 = 64;
/// As [`TRIED`], where of that size few batches have run yet.
const TRIED_NEW: u32 = 8;

/// Lanes in the order of the tiers, highest first, and the credit of each.
#[derive(Debug)]
pub struct Scheduler<W: Waiting> {
    lanes: Vec<Lane<W>>,
    weights: Vec<i64>,
    /// Microseconds.
    credits: Vec<i64>,
    /// Rounds so far, and the last one whose credit each tier has had.
    round: u64,
    credited: Vec<u64>,
    caps: Caps,
    policy: BatchPolicy,
    costs: CostCurve,
    /// Microseconds of the largest batch of late.
    largest: i64,
    /// Counts batches that could have been larger, see [`TRIED`].
    full_batches: u32,
}

/// How fast an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Rows of its batches, at most.
    pub most_rows: u32,
    /// Microseconds a row in such a batch, where anything is known.
    pub row_us: Option<u64>,
}

/// What an idle instance should do.
#[derive(Debug)]
pub enum Next<W> {
    /// Run these together. May be empty when everything that was due had expired.
    Run {
        /// At most `max_batch_size` rows of one key, and no more than the key allows; never expired ones.
        batch: Vec<W>,
        /// Requests found past their deadline; they must not run.
        expired: Vec<W>,
        /// Microseconds a row that their tiers were charged.
        charged: i64,
    },
    /// Ask again at this instant, or when a request comes.
    WaitUntil(Instant),
    /// Ask again when a request comes.
    Idle,
}

impl<W: Waiting> Scheduler<W> {
    /// A scheduler over one lane per weight, highest tier first.
    pub fn new(weights: &[u32], policy: BatchPolicy) -> Self {
        Self {
            lanes: weights.iter().map(|_| Lane::default()).collect(),
            weights: weights.iter().map(|&weight| i64::from(weight.max(1))).collect(),
            credits: vec![0; weights.len()],
            round: 1,
            credited: vec![0; weights.len()],
            caps: Caps::default(),
            policy,
            costs: CostCurve::default(),
            largest: 0,
            full_batches: 0,
        }
    }

    /// With caps on what the tiers take.
    #[must_use]
    pub fn capped(self, caps: Caps) -> Self {
        Self { caps, ..self }
    }

    /// Goes on with other weights and caps. Credit that a tier has keeps to what a round gives it now.
    pub fn retune(&mut self, weights: &[u32], max_shares: &[f64], instances: usize) {
        for (tier, &weight) in weights.iter().enumerate().take(self.weights.len()) {
            self.weights[tier] = i64::from(weight.max(1));
            self.credits[tier] = self.credits[tier].min(self.weights[tier] * self.quantum());
        }
        self.caps.retune(max_shares, instances);
    }

    /// Takes what a batch cost.
    pub fn learn(&mut self, rows: u32, busy: Duration) {
        self.costs.learn(rows, busy);
    }

    /// Takes what a batch really cost whose tiers and tenants were charged `charged` microseconds a row. `requests` has the
    /// tier, tenant and rows of each.
    pub fn ran<'a>(
        &mut self,
        requests: impl Iterator<Item = (usize, &'a W::Tenant, u32)> + Clone,
        charged: i64,
        busy: Duration,
    ) where
        W::Tenant: 'a,
    {
        let rows: u32 = requests.clone().map(|(_, _, rows)| rows).sum();
        self.costs.ran(rows, busy);
        self.failed(requests, charged, busy);
    }

    /// As [`Scheduler::ran`], of a run that gave no answers: its time is spent, but says nothing of what a batch costs.
    pub fn failed<'a>(
        &mut self,
        requests: impl Iterator<Item = (usize, &'a W::Tenant, u32)> + Clone,
        charged: i64,
        busy: Duration,
    ) where
        W::Tenant: 'a,
    {
        let rows: u32 = requests.clone().map(|(_, _, rows)| rows).sum();
        let micros = i64::try_from(busy.as_micros()).unwrap_or(i64::MAX);
        self.largest = micros.max(self.largest - self.largest / 1000);
        let cost = micros / i64::from(rows.max(1));
        for (tier, tenant, rows) in requests {
            self.charge(tier, rows, cost - charged);
            self.lanes[tier].correct(tenant, (cost - charged).saturating_mul(rows.into()));
        }
    }

    /// Debt ends at some of the largest batches: where a tier filled others' batches for long, it must not starve for it.
    fn charge(&mut self, tier: usize, rows: u32, per_row: i64) {
        let batch = self.largest.max(self.quantum().saturating_mul(self.policy.max_batch_size.into()));
        let floor = batch.saturating_mul(-MOST_DEBT);
        let cost = per_row.saturating_mul(rows.into());
        self.caps.spend(tier, cost);
        self.credits[tier] = self.credits[tier].saturating_sub(cost).max(floor);
    }

    /// How fast an instance is, by what was learned.
    pub fn pace(&self) -> Pace {
        let most_rows = self.most_rows();
        let row_us = self.costs.is_known().then(|| self.costs.per_row(most_rows).unsigned_abs());
        Pace { most_rows, row_us }
    }

    /// Rows that clients should join in one request, at most: so many that the message costs little beside them, and not so
    /// many that other instances lack work. 1 while nothing is known.
    pub fn pack_rows(&self) -> u32 {
        let most = self.policy.size(u32::MAX, self.most_rows());
        if self.costs.is_known() { self.costs.rows_within(PACK_TIME, most) } else { 1 }
    }

    /// What batches cost.
    pub fn costs(&self) -> &CostCurve {
        &self.costs
    }

    /// A round's credit for one unit of weight: a row of the largest batch.
    fn quantum(&self) -> i64 {
        self.costs.per_row(self.policy.max_batch_size)
    }

    /// Adds a request to the lane of tier number `tier`.
    ///
    /// # Panics
    /// When there is no such tier.
    pub fn push(&mut self, tier: usize, waiting: W) {
        if self.lanes[tier].is_empty() && self.credited[tier] < self.round {
            self.credited[tier] = self.round;
            self.credits[tier] = self.credits[tier].min(0) + self.weights[tier] * self.quantum();
        }
        self.lanes[tier].push(waiting);
    }

    /// The next batch, if one is due at `now`. Call it when an instance is free: batches form as late as possible.
    ///
    /// The instance serves these tiers only.
    pub fn next(&mut self, serves: TierSet, now: Instant) -> Next<W> {
        let waiting = |tier: &usize| serves.contains(*tier) && !self.lanes[*tier].is_empty();
        let open = self.caps.open(now);
        let capped = (0..self.lanes.len()).filter(waiting).filter(|&tier| !open.contains(tier));
        let opens = capped.map(|tier| self.caps.opens(tier, now)).min();
        let serves = serves.and(open);
        let Some(first) = self.turn(serves, |lane| !lane.is_empty()) else {
            return opens.map_or(Next::Idle, Next::WaitUntil);
        };
        let front = self.lanes[first].front().expect("the lane whose turn it is has a request");
        let key = front.key().clone();
        let most_rows = front.most_rows();
        let rows = self.lanes(serves).fold(0u32, |rows, lane| rows.saturating_add(lane.rows_of(&key)));
        let enough = self.most_rows().min(most_rows);
        let most = if !self.policy.is_enough(rows, enough) {
            if let Some(due) = self.may_wait(serves, &key, rows, now) {
                // A tier that rests may have a full batch.
                return Next::WaitUntil(opens.map_or(due, |opens| opens.min(due)));
            }
            enough
        } else if rows > enough {
            self.tried(enough).min(most_rows)
        } else {
            enough
        };
        let size = self.policy.size(rows, most);
        self.form(serves, &key, (size, most), self.costs.per_row(rows.min(size)), now)
    }

    /// The lanes of these tiers.
    fn lanes(&self, serves: TierSet) -> impl Iterator<Item = &Lane<W>> {
        self.lanes.iter().enumerate().filter(move |(tier, _)| serves.contains(*tier)).map(|(_, lane)| lane)
    }

    /// Rows of a batch, at most: as many as are allowed, but no more than pays.
    fn most_rows(&self) -> u32 {
        let allowed = self.allowed_rows();
        if self.finds_size() { self.costs.rows_that_pay(allowed) } else { allowed }
    }

    /// Whoever bounds no time wants full batches, and whoever names sizes knows them.
    fn finds_size(&self) -> bool {
        self.policy.max_batch_time.is_some() && self.policy.preferred_batch_sizes.is_empty()
    }

    /// Rows of the next batch where more wait than are known to pay.
    fn tried(&mut self, enough: u32) -> u32 {
        if !self.finds_size() {
            return enough;
        }
        self.full_batches = (self.full_batches + 1) % (2 * TRIED);
        let larger = enough.saturating_mul(2).min(self.allowed_rows());
        let smaller = if self.costs.is_short(enough) { enough } else { enough.div_ceil(2) };
        let every = |rows| if self.costs.is_new(rows) { TRIED_NEW } else { TRIED };
        if self.full_batches % (2 * every(larger)) == every(larger) {
            larger
        } else if self.full_batches.is_multiple_of(2 * every(smaller)) {
            smaller
        } else {
            enough
        }
    }

    /// Rows of a batch by size, and by the time it may take.
    fn allowed_rows(&self) -> u32 {
        let most = self.policy.max_batch_size;
        self.policy.max_batch_time.map_or(most, |limit| self.costs.rows_within(limit, most))
    }

    /// Takes requests of `key`, each from the lane whose turn it is, until the batch has `size` rows, or those of requests that make up
    /// `most` at most. `per_row` is what a row costs its tier.
    fn form(
        &mut self,
        serves: TierSet,
        key: &W::Key,
        (size, most): (u32, u32),
        per_row: i64,
        now: Instant,
    ) -> Next<W> {
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        let mut rows = 0u32;
        let is_expired = |waiting: &W| waiting.deadline().is_some_and(|deadline| deadline <= now);
        while let Some(tier) = self.turn(serves, |lane| lane.offers(key)) {
            let price = |front: &W| match is_expired(front) {
                true => Some(0),
                false => fits(rows, front.rows(), most).then_some(per_row.unsigned_abs()),
            };
            let Some(waiting) = self.lanes[tier].take_of(key, price) else { break };
            if is_expired(&waiting) {
                expired.push(waiting);
                continue;
            }
            rows = rows.saturating_add(waiting.rows());
            self.charge(tier, waiting.rows(), per_row);
            batch.push(waiting);
            if rows >= size {
                break;
            }
        }
        Next::Run { batch, expired, charged: per_row }
    }

    /// The highest tier with credit among those that are served and whose lanes `offers` holds for.
    ///
    /// A new round starts only when no waiting tier has credit. Where some have, but offer nothing that fits the batch, the
    /// batch is filled from the least indebted of those that do: it is cheaper to run now than to run half empty, and
    /// the debt is paid back in later rounds.
    fn turn(&mut self, serves: TierSet, offers: impl Fn(&Lane<W>) -> bool) -> Option<usize> {
        let tiers = 0..self.lanes.len();
        let offering =
            TierSet::of(tiers.clone().filter(|&tier| serves.contains(tier) && offers(&self.lanes[tier])));
        if offering.is_empty() {
            return None;
        }
        // A tier that this instance does not serve may wait with credit for long, and must not keep the others from theirs.
        let has_credit =
            |tier: usize| serves.contains(tier) && !self.lanes[tier].is_empty() && self.credits[tier] > 0;
        if !tiers.clone().any(has_credit) {
            self.start_round(serves);
        }
        let with_credit = tiers.clone().find(|&tier| offering.contains(tier) && self.credits[tier] > 0);
        with_credit.or_else(|| {
            // Compares credit / weight without dividing; all credits here are 0 or less.
            tiers.filter(|&tier| offering.contains(tier)).max_by(|&a, &b| {
                (self.credits[a] * self.weights[b]).cmp(&(self.credits[b] * self.weights[a])).then(b.cmp(&a))
            })
        })
    }

    /// Gives every waiting tier its weight, as often as it takes until one that is served has credit again; an empty tier
    /// pays off debt. What is left of a credit is no more than a round gives.
    fn start_round(&mut self, serves: TierSet) {
        let tiers = 0..self.lanes.len();
        let quantum = self.quantum();
        let waiting = tiers.clone().filter(|&tier| serves.contains(tier) && !self.lanes[tier].is_empty());
        let rounds = waiting.map(|tier| -self.credits[tier] / (self.weights[tier] * quantum) + 1);
        let rounds = rounds.min().unwrap_or(0);
        self.round = self.round.saturating_add(rounds.unsigned_abs());
        for tier in tiers {
            let a_round = self.weights[tier] * quantum;
            self.credits[tier] = (self.credits[tier] + rounds * a_round).min(self.credits[tier].max(a_round));
            if self.lanes[tier].is_empty() {
                self.credits[tier] = self.credits[tier].min(0);
            } else {
                self.credited[tier] = self.round;
            }
        }
    }

    /// Requests waiting in the lane of tier number `tier`.
    pub fn waiting(&self, tier: usize) -> usize {
        self.lanes[tier].len()
    }

    /// Those of the tiers of which no more waits than fits a batch.
    pub fn short(&self, tiers: TierSet) -> TierSet {
        let most = self.most_rows();
        let is_short = |lane: &Lane<W>| {
            let rows = lane.front().map_or(0, |front| lane.rows_of(front.key()));
            rows <= most && lane.len() <= most as usize
        };
        TierSet::of((0..self.lanes.len()).filter(|&tier| tiers.contains(tier) && is_short(&self.lanes[tier])))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(Lane::is_empty)
    }

    /// Takes everything that waits, to be given back.
    pub fn drain(&mut self) -> Vec<W> {
        self.lanes.iter_mut().flat_map(|lane| lane.drain().collect::<Vec<_>>()).collect()
    }
}

/// Whether a request of `more` rows fits a batch of `rows`. One that is larger than a batch may be runs alone.
fn fits(rows: u32, more: u32, most: u32) -> bool {
    rows == 0 || rows.saturating_add(more) <= most
}

#[cfg(test)]
pub(super) mod tests;
