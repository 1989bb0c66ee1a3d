//! Requests that may be what ended the processes that ran them. Plain code.
//!
//! A delivery that comes again was with a process, or a connection, that ended. Mostly it only waited there: everything that the
//! process had fetched comes again with the one that ended it. So once is a suspicion that costs little (it shares batches with others
//! like it), twice is one to look into: it runs by itself, from the queue of suspects, where the broker counts; see [`super::solo`].

use millrace_common::amqp::message::header;
use millrace_common::amqp::properties::Properties;

/// How strongly a request is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// It comes for the first time.
    None,
    /// It shares batches with other suspects only.
    Some,
    /// It is to run by itself.
    Strong,
}

/// Redeliveries after which it runs by itself.
pub const STRONG: u64 = 2;
/// Redeliveries after which it is poison: so many, and three runs by itself. Mostly the broker's limit is quicker; it does not know of
/// those that lie before a hop to a worker that has the pinned version.
pub const POISON: u64 = STRONG + 3;

/// How often a delivery has come before, as far as is known.
///
/// `counts` says whether its queue counts, as quorum queues do; a classic one tells only that it is not the first time.
/// `own_user` is the user of the workers, who may say what a request had behind it when they passed it on.
pub fn redeliveries(properties: &Properties, is_redelivered: bool, counts: bool, own_user: &str) -> u64 {
    let count = |name| properties.count(name).ok().flatten();
    let here = match is_redelivered {
        // Whatever its headers say: they are the sender's where the broker has none to set.
        false => 0,
        // What a worker gives back when it stops is counted by some brokers, by others not.
        true if counts => count(header::DELIVERY_COUNT).unwrap_or(0),
        // This may be the first time, or the tenth.
        true => STRONG,
    };
    told(properties, own_user).saturating_add(here)
}

/// How often it had come before the worker that passed it on got it.
fn told(properties: &Properties, own_user: &str) -> u64 {
    match properties.user_id() {
        Some(user) if user == own_user => properties.count(header::REDELIVERIES).ok().flatten().unwrap_or(0),
        _ => 0,
    }
}

/// What a worker tells the next one when it passes on a request that has come so often.
///
/// Of redeliveries in company more than enough says no more than enough: those count, without end, that only waited where another
/// ended the process. What was counted while it ran by itself stays.
pub fn carried(properties: &Properties, redeliveries: u64, is_solo: bool, own_user: &str) -> u64 {
    match is_solo {
        true => redeliveries,
        false => told(properties, own_user).max(redeliveries.min(STRONG)),
    }
}

/// What to do about it.
pub fn suspicion(redeliveries: u64) -> Suspicion {
    match redeliveries {
        0 => Suspicion::None,
        1..STRONG => Suspicion::Some,
        _ => Suspicion::Strong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "workers";

    fn counted(count: u64) -> Properties {
        Properties::new().with_count(header::DELIVERY_COUNT, count)
    }

    #[test]
    fn what_comes_again_is_suspected_by_how_often() {
        let of =
            |properties: &Properties, again, counts| suspicion(redeliveries(properties, again, counts, OWN));
        let none = Properties::new();
        assert_eq!(of(&none, false, true), Suspicion::None);
        assert_eq!(of(&none, true, true), Suspicion::None, "given back, and not counted");
        assert_eq!(of(&counted(1), true, true), Suspicion::Some);
        assert_eq!(of(&counted(2), true, true), Suspicion::Strong);
        assert_eq!(of(&none, false, false), Suspicion::None);
        assert_eq!(of(&none, true, false), Suspicion::Strong, "a classic queue hides how often");
    }

    #[test]
    fn a_hop_to_another_worker_forgets_no_run_by_itself() {
        let hop = |before: u64, here: u64, is_solo: bool| {
            let properties = counted(here).with_count(header::REDELIVERIES, before).with_user_id(OWN);
            let all = redeliveries(&properties, here > 0, true, OWN);
            carried(&properties, all, is_solo, OWN)
        };
        // In company, on the way to the queue of suspects: however often it came.
        assert_eq!(hop(0, 2, false), STRONG);
        assert_eq!(hop(0, 99, false), STRONG);
        // Two runs by itself, then to the worker that has its version, and by its tier's queue to the queue of suspects again.
        let ran_twice = hop(STRONG, 2, true);
        assert_eq!(ran_twice, STRONG + 2);
        assert_eq!(hop(ran_twice, 0, false), ran_twice);
        assert_eq!(hop(ran_twice, 7, false), ran_twice);
        assert_eq!(hop(ran_twice, 1, true), POISON);
    }

    #[test]
    fn nobody_but_the_broker_and_the_workers_tells_how_often() {
        assert_eq!(redeliveries(&counted(7), false, true, OWN), 0);
        let told = |user: Option<&str>| {
            let properties = counted(1).with_count(header::REDELIVERIES, 1);
            user.into_iter().fold(properties, Properties::with_user_id)
        };
        assert_eq!(redeliveries(&told(None), true, true, OWN), 1);
        assert_eq!(redeliveries(&told(Some("ann")), true, true, OWN), 1);
        assert_eq!(redeliveries(&told(Some(OWN)), true, true, OWN), 2);
        assert_eq!(redeliveries(&told(Some(OWN)), false, true, OWN), 1);
    }
}
