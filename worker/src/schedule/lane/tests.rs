//! Tenants of a lane over arbitrary arrivals.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Request {
    id: u32,
    tenant: u8,
    key: u8,
    rows: u32,
    is_urgent: bool,
}

impl Waiting for Request {
    type Key = u8;
    type Tenant = u8;
    fn key(&self) -> &u8 {
        &self.key
    }
    fn tenant(&self) -> &u8 {
        &self.tenant
    }
    fn rows(&self) -> u32 {
        self.rows
    }
    fn arrived(&self) -> Instant {
        unreachable!("lanes go by sequence")
    }
    fn deadline(&self) -> Option<Instant> {
        None
    }
    fn is_urgent(&self) -> bool {
        self.is_urgent
    }
}

fn request(tenant: u8, id: u32) -> Request {
    Request { id, tenant, key: 0, rows: 1, is_urgent: false }
}

fn next(lane: &mut Lane<Request>) -> Option<Request> {
    let key = *lane.front()?.key();
    lane.take_of(&key, |_| Some(10))
}

proptest! {
    /// While tenants wait, the time that any two of them have had since differs by no more than their largest requests.
    #[test]
    fn tenants_that_wait_share_alike(
        arrivals in prop::collection::vec((0u8..5, 1u32..9, any::<bool>()), 50..300),
        serve_every in 1usize..4,
    ) {
        let mut lane = Lane::default();
        let mut had: HashMap<u8, u32> = HashMap::new();
        for (id, (tenant, rows, is_urgent)) in arrivals.iter().copied().enumerate() {
            if !lane.tenants.contains_key(&tenant) {
                // Whoever comes anew starts the comparison.
                had.clear();
            }
            lane.push(Request { rows, is_urgent, ..request(tenant, u32::try_from(id).unwrap()) });
            if id % serve_every == 0 {
                let waiting: Vec<u8> = lane.tenants.keys().copied().collect();
                let served = next(&mut lane).unwrap();
                *had.entry(served.tenant).or_default() += served.rows;
                let of = |tenant: &u8| had.get(tenant).copied().unwrap_or(0);
                let (least, most) = (waiting.iter().map(of).min().unwrap(), waiting.iter().map(of).max().unwrap());
                prop_assert!(most - least <= 2 * 8, "{had:?}");
            }
        }
        let mut left = lane.len();
        while next(&mut lane).is_some() {
            left -= 1;
        }
        prop_assert_eq!(left, 0);
        prop_assert!(lane.is_empty() && lane.loads.is_empty() && lane.turns.is_empty() && lane.ahead.is_empty());
    }

    /// First in, first out inside a tenant, urgent ones first, whatever the others do.
    #[test]
    fn a_tenant_keeps_its_order(arrivals in prop::collection::vec((0u8..3, any::<bool>()), 1..100)) {
        let mut lane = Lane::default();
        for (id, (tenant, is_urgent)) in arrivals.iter().copied().enumerate() {
            lane.push(Request { is_urgent, ..request(tenant, u32::try_from(id).unwrap()) });
        }
        let mut last: HashMap<u8, (bool, u32)> = HashMap::new();
        while let Some(served) = next(&mut lane) {
            let place = (!served.is_urgent, served.id);
            let before = last.insert(served.tenant, place);
            prop_assert!(before.is_none_or(|before| before < place));
        }
    }
}

#[test]
fn a_small_tenant_does_not_wait_for_a_large_ones_backlog() {
    let mut lane = Lane::default();
    for id in 0..1000 {
        lane.push(request(0, id));
    }
    for _ in 0..100 {
        next(&mut lane);
    }
    for id in 0..10 {
        lane.push(request(1, id));
    }
    let served: Vec<u8> = (0..20).map(|_| next(&mut lane).unwrap().tenant).collect();
    assert!(served.iter().filter(|&&tenant| tenant == 1).count() >= 9, "{served:?}");
}

#[test]
fn leaving_for_a_moment_gains_nothing() {
    let mut lane = Lane::default();
    for id in 0..1000 {
        lane.push(request(0, id));
    }
    let mut served = [0u32; 2];
    for id in 0..400 {
        // Never more than one at a time: its line empties again and again.
        if !lane.tenants.contains_key(&1) {
            lane.push(Request { rows: 4, ..request(1, id) });
        }
        let next = next(&mut lane).unwrap();
        served[usize::from(next.tenant)] += next.rows;
    }
    assert!(served[0].abs_diff(served[1]) <= 8, "{served:?}");
}

#[test]
fn made_up_tenants_do_not_fill_memory() {
    let mut lane = Lane::<Other>::default();
    lane.push(Other(u32::MAX));
    for tenant in 0..100_000 {
        lane.push(Other(tenant));
        lane.take_of(&(), |_| Some(10));
    }
    assert!(lane.ahead.len() <= REMEMBERED, "{}", lane.ahead.len());
}

/// A request of one of many tenants.
#[derive(Debug)]
struct Other(u32);

impl Waiting for Other {
    type Key = ();
    type Tenant = u32;
    fn key(&self) -> &() {
        &()
    }
    fn tenant(&self) -> &u32 {
        &self.0
    }
    fn rows(&self) -> u32 {
        1
    }
    fn arrived(&self) -> Instant {
        unreachable!("lanes go by sequence")
    }
    fn deadline(&self) -> Option<Instant> {
        None
    }
    fn is_urgent(&self) -> bool {
        false
    }
}
