//! A lane: the requests of one tier that wait in this worker for one model version.
//!
//! Its tenants share the lane's time alike: the one that has had the least goes first. One that comes anew begins where the
//! others are, so that nobody saves time up. Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queuing", SIGCOMM 1996.

mod line;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use self::line::Line;

/// Tenants with nothing waiting that are remembered, at most. With more than half of them still ahead of all others, everybody
/// begins anew: names can be made up.
const REMEMBERED: usize = 4096;

/// Tenants looked through for a request that fits a batch: the scheduler's lock is held meanwhile, for each of a batch's requests.
const LOOKED_THROUGH: usize = 64;

/// What the scheduler must know of a request. Implemented by `Job`, and by plain structs in property tests.
pub trait Waiting {
    /// Requests of equal keys may share a batch.
    type Key: Clone + Eq + Hash + Debug;
    /// Whom requests are accounted to.
    type Tenant: Clone + Ord + Hash + Debug;

    /// Its key.
    fn key(&self) -> &Self::Key;
    /// Its tenant.
    fn tenant(&self) -> &Self::Tenant;
    /// Rows it adds to a batch.
    fn rows(&self) -> u32;
    /// Rows of a batch of its key, at most; equal for equal keys.
    fn most_rows(&self) -> u32 {
        u32::MAX
    }
    /// When it came.
    fn arrived(&self) -> Instant;
    /// When nobody waits for it any more.
    fn deadline(&self) -> Option<Instant>;
    /// Whether it goes before the normal ones of its tenant.
    fn is_urgent(&self) -> bool;
}

/// First in, first out per tenant and key, urgent requests first.
#[derive(Debug)]
pub struct Lane<W: Waiting> {
    tenants: HashMap<W::Tenant, Tenant<W>>,
    /// The tenants that wait: time had, a number that tells who began to wait first, and who it is.
    turns: BTreeSet<(u64, u64, W::Tenant)>,
    /// Tenants with nothing waiting that have had more than those who wait.
    ahead: HashMap<W::Tenant, u64>,
    /// The time that those who come anew are taken to have had.
    reached: u64,
    loads: HashMap<W::Key, Load>,
    next_sequence: u64,
    length: usize,
}

/// What waits of one key.
#[derive(Debug)]
struct Load {
    requests: usize,
    rows: u64,
    /// Of a batch of this key, at most.
    most_rows: u32,
}

#[derive(Debug)]
struct Tenant<W: Waiting> {
    line: Line<W>,
    /// Its place among the turns.
    had: u64,
    since: u64,
}

impl<W: Waiting> Default for Lane<W> {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
            turns: BTreeSet::new(),
            ahead: HashMap::new(),
            reached: 0,
            loads: HashMap::new(),
            next_sequence: 0,
            length: 0,
        }
    }
}

impl<W: Waiting> Lane<W> {
    /// Appends a request; an urgent one goes behind the urgent ones of its tenant that already wait.
    pub fn push(&mut self, waiting: W) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.length += 1;
        let most_rows = waiting.most_rows();
        let load =
            self.loads.entry(waiting.key().clone()).or_insert(Load { requests: 0, rows: 0, most_rows });
        load.requests += 1;
        load.rows += u64::from(waiting.rows());
        if let Some(tenant) = self.tenants.get_mut(waiting.tenant()) {
            return tenant.line.push(sequence, waiting);
        }
        let name = waiting.tenant().clone();
        let had = self.ahead.remove(&name).unwrap_or(0).max(self.reached);
        let mut tenant = Tenant { line: Line::default(), had, since: sequence };
        tenant.line.push(sequence, waiting);
        self.turns.insert((had, sequence, name.clone()));
        self.tenants.insert(name, tenant);
    }

    fn in_turn(&self) -> impl Iterator<Item = &Line<W>> {
        self.turns.iter().filter_map(|(_, _, name)| self.tenants.get(name)).map(|tenant| &tenant.line)
    }

    /// The request whose turn it is.
    pub fn front(&self) -> Option<&W> {
        self.in_turn().next().and_then(Line::front)
    }

    /// Whether a request with this key waits.
    pub fn offers(&self, key: &W::Key) -> bool {
        self.loads.contains_key(key)
    }

    /// Takes the next request with this key, if `price` gives what a row of it costs its tenant. Tenants far behind are not
    /// looked through for it.
    pub fn take_of(&mut self, key: &W::Key, price: impl FnOnce(&W) -> Option<u64>) -> Option<W> {
        let front = self.in_turn().take(LOOKED_THROUGH).find_map(|line| line.front_of(key))?;
        let per_row = price(front)?;
        let name = front.tenant().clone();
        let tenant = self.tenants.get_mut(&name)?;
        let waiting = tenant.line.pop_of(key)?;
        self.length -= 1;
        if let Some(load) = self.loads.get_mut(key) {
            load.requests -= 1;
            load.rows -= u64::from(waiting.rows());
            if load.requests == 0 {
                self.loads.remove(key);
            }
        }
        self.charge(name, per_row.saturating_mul(waiting.rows().into()));
        Some(waiting)
    }

    /// Moves a tenant behind those who have had less.
    fn charge(&mut self, name: W::Tenant, cost: u64) {
        let Some(tenant) = self.tenants.get_mut(&name) else { return };
        self.turns.remove(&(tenant.had, tenant.since, name.clone()));
        tenant.had = tenant.had.saturating_add(cost);
        let had = tenant.had;
        if !tenant.line.is_empty() {
            self.turns.insert((had, tenant.since, name));
            return self.reach();
        }
        self.tenants.remove(&name);
        if self.tenants.is_empty() {
            // Nobody waits who could be ahead of anybody.
            self.ahead.clear();
            self.reached = 0;
            return;
        }
        if self.ahead.len() >= REMEMBERED {
            self.ahead.retain(|_, had| *had > self.reached);
            if self.ahead.len() > REMEMBERED / 2 {
                self.ahead.clear();
            }
        }
        self.ahead.insert(name, had);
        self.reach();
    }

    /// Whoever comes anew has had as much as the one who has had the least of those who wait.
    fn reach(&mut self) {
        let least = self.turns.first().map_or(0, |(had, _, _)| *had);
        self.reached = self.reached.max(least);
    }

    /// Charges a tenant so much more, or less, for what was taken before.
    pub fn correct(&mut self, name: &W::Tenant, more: i64) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            let Tenant { had, since, .. } = *tenant;
            tenant.had = had.saturating_add_signed(more);
            let corrected = tenant.had;
            self.turns.remove(&(had, since, name.clone()));
            self.turns.insert((corrected, since, name.clone()));
            self.reach();
        } else if let Some(had) = self.ahead.get_mut(name) {
            *had = had.saturating_add_signed(more);
        }
    }

    /// Rows waiting with this key.
    pub fn rows_of(&self, key: &W::Key) -> u32 {
        self.loads.get(key).map_or(0, |load| u32::try_from(load.rows).unwrap_or(u32::MAX))
    }

    /// What waits of each other key: rows, and the most rows of a batch of it.
    pub fn others<'a>(&'a self, key: &'a W::Key) -> impl Iterator<Item = (u32, u32)> {
        let others = self.loads.iter().filter(move |(other, _)| *other != key);
        others.map(|(_, load)| (u32::try_from(load.rows).unwrap_or(u32::MAX), load.most_rows))
    }

    /// Everything that waits, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &W> {
        self.in_turn().flat_map(Line::all)
    }

    /// The earliest deadline among `enough` of the requests with this key.
    pub fn deadline_of(&self, key: &W::Key, enough: u32) -> Option<Instant> {
        let waiting = self.in_turn().flat_map(|line| line.all_of(key)).take(enough as usize);
        waiting.filter_map(Waiting::deadline).min()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Requests waiting.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Takes everything, in no particular order.
    pub fn drain(&mut self) -> impl Iterator<Item = W> + use<W> {
        std::mem::take(self).tenants.into_values().flat_map(|tenant| tenant.line.into_all())
    }
}

#[cfg(test)]
mod tests;
