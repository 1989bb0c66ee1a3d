//! Histories that must pass, and histories that must not.

use std::time::Duration;

use super::*;

const LIMITS: Limits = Limits { starts: 2 };

fn published() -> What {
    What::Published { tenant: "a".to_owned() }
}

fn started() -> What {
    What::Started { worker: "w".to_owned() }
}

fn refused() -> What {
    What::Refused { code: "overloaded".to_owned() }
}

fn replied(status: &str) -> What {
    What::Replied { status: status.to_owned(), tenant: "a".to_owned() }
}

fn ok() -> What {
    replied(OK)
}

/// All of one request but what is left over.
fn history(whats: &[What]) -> Vec<Event> {
    let event =
        |(at, what): (usize, &What)| Event { at_ms: at as u64, id: "1".to_owned(), what: what.clone() };
    whats.iter().enumerate().map(event).collect()
}

#[test]
fn histories_in_order_pass() {
    let good: [&[What]; 8] = [
        &[published(), What::Confirmed, started(), ok()],
        // A reply may overtake its confirm, and a worker may die between two runs.
        &[published(), started(), started(), ok(), What::Confirmed],
        &[published(), What::Confirmed, replied("backend_error")],
        &[published(), refused()],
        &[published(), What::Unknown],
        &[published(), What::Unknown, started(), ok()],
        &[published(), What::Unknown, What::GaveUp],
        &[published(), What::Confirmed, ok(), What::Residue { count: 0 }],
    ];
    for whats in good {
        let verdict = Verdict::of(history(whats), LIMITS);
        assert!(verdict.offences.is_empty(), "{whats:?}: {verdict}");
    }
}

#[test]
fn histories_out_of_order_do_not() {
    use Offence as O;
    let stranger = What::Replied { status: OK.to_owned(), tenant: "b".to_owned() };
    let bad: [(O, &[What]); 23] = [
        (O::Empty, &[]),
        (O::Empty, &[What::Residue { count: 0 }]),
        (O::Lost, &[published(), What::Confirmed]),
        (O::Lost, &[published(), What::Confirmed, started()]),
        (O::Lost, &[published(), What::Confirmed, What::GaveUp]),
        (O::Duplicated, &[published(), What::Confirmed, ok(), ok()]),
        (O::Duplicated, &[published(), What::Confirmed, ok(), replied("backend_error")]),
        (O::Duplicated, &[published(), What::Unknown, ok(), ok()]),
        (O::Unexpected, &[ok()]),
        (O::Unexpected, &[ok(), published(), What::Confirmed]),
        (O::Unexpected, &[started(), published(), What::Confirmed, ok()]),
        (O::Unexpected, &[published(), What::Confirmed, stranger]),
        (O::Unexpected, &[published(), refused(), ok()]),
        (O::Overheard, &[published(), refused(), started()]),
        (O::Untold, &[published()]),
        (O::Untold, &[published(), started(), ok()]),
        (O::Contradicted, &[published(), refused(), refused()]),
        (O::Contradicted, &[published(), refused(), What::Unknown]),
        (O::Contradicted, &[published(), published(), What::Confirmed, ok()]),
        (O::Contradicted, &[published(), What::Confirmed, ok(), What::Confirmed]),
        (O::Untyped, &[published(), What::Confirmed, replied("wrong")]),
        (O::Overrun, &[published(), What::Confirmed, started(), started(), started(), ok()]),
        (O::Residue, &[published(), What::Confirmed, ok(), What::Residue { count: 1 }]),
    ];
    for (offence, whats) in bad {
        let verdict = Verdict::of(history(whats), LIMITS);
        let found: Vec<_> = verdict.offences.keys().collect();
        assert!(found.contains(&&offence), "{whats:?} must be {offence:?}, not {found:?}");
    }
    let untyped = history(&[published(), What::Refused { code: String::new() }]);
    assert!(Verdict::of(untyped, LIMITS).offences.contains_key(&O::Untyped));
}

/// Every offence there is; a new one is missing here until its name is written down.
fn all() -> Vec<Offence> {
    use Offence::*;
    let next = |offence| match offence {
        Empty => Some(Lost),
        Lost => Some(Duplicated),
        Duplicated => Some(Unexpected),
        Unexpected => Some(Overheard),
        Overheard => Some(Untold),
        Untold => Some(Contradicted),
        Contradicted => Some(Untyped),
        Untyped => Some(Overrun),
        Overrun => Some(Residue),
        Residue => None,
    };
    std::iter::successors(Some(Empty), |offence| next(*offence)).collect()
}

#[test]
fn each_offence_alone_is_found_in_whom_it_is_and_in_nobody_else() {
    use Offence as O;
    let stranger = What::Replied { status: OK.to_owned(), tenant: "b".to_owned() };
    let alone: [(O, &[What]); 11] = [
        (O::Lost, &[published(), What::Confirmed, started()]),
        (O::Duplicated, &[published(), What::Confirmed, started(), ok(), ok()]),
        (O::Unexpected, &[published(), What::Confirmed, started(), stranger.clone()]),
        (O::Unexpected, &[published(), What::Confirmed, stranger]),
        (O::Overheard, &[published(), refused(), started()]),
        (O::Untold, &[published(), started(), ok()]),
        (O::Contradicted, &[published(), What::Confirmed, What::Unknown, ok()]),
        (O::Untyped, &[published(), What::Confirmed, replied("it broke")]),
        (O::Untyped, &[published(), What::Refused { code: "no".to_owned() }]),
        (O::Overrun, &[published(), What::Confirmed, started(), started(), started(), ok()]),
        (O::Residue, &[published(), What::Confirmed, ok(), What::Residue { count: 3 }]),
    ];
    let mut found = BTreeSet::from([O::Empty]);
    for (offence, whats) in alone {
        let good = history(&[published(), What::Confirmed, started(), started(), ok()]);
        let good = good.into_iter().map(|event| Event { id: "good".to_owned(), ..event });
        let verdict = Verdict::of(good.chain(history(whats)), LIMITS);
        let whom = if offence == O::Residue { "3 1" } else { "1" };
        let wanted = BTreeMap::from([(offence, BTreeSet::from([whom.to_owned()]))]);
        assert_eq!(verdict.offences, wanted, "{whats:?}");
        found.insert(offence);
    }
    assert!(Verdict::of([], LIMITS).offences.contains_key(&O::Empty));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), all(), "an offence has no history that commits it");
}

#[test]
fn a_history_is_judged_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let ledger = Ledger::create(&path).unwrap();
    let closed = Error::Closed;
    let expired = Error::DeadlineExceeded { budget: Duration::from_secs(1) };
    let failed = Error::Failed {
        code: Code::BackendError,
        message: String::new(),
        retry_after: None,
        worker: String::new(),
    };
    let full = Error::Refused { code: Code::Overloaded, message: String::new(), retry_after: None };
    for id in 0..7 {
        ledger.note(id, published());
    }
    ledger.note_unsubmitted(0, "a", &full);
    ledger.note_unsubmitted(1, "a", &closed);
    ledger.note_unsubmitted(2, "a", &expired);
    ledger.note_unsubmitted(3, "a", &failed);
    for id in 4..7 {
        ledger.note(id, What::Confirmed);
    }
    ledger.note(4, ok());
    ledger.note_failed(5, "a", &failed);
    ledger.note_failed(6, "a", &expired);
    let verdict = ledger.judge(LIMITS).unwrap();
    let lost = BTreeMap::from([(Offence::Lost, BTreeSet::from(["6".to_owned()]))]);
    assert_eq!(verdict.offences, lost, "who gives up has no answer");
    let counts = [
        (verdict.requests, 7),
        (verdict.confirmed, 4),
        (verdict.refused, 1),
        (verdict.unknown, 2),
        (verdict.ok, 1),
        (verdict.failed, 2),
        (verdict.gave_up, 1),
    ];
    assert!(counts.iter().all(|(found, wanted)| found == wanted), "{verdict}");
    assert_eq!(Verdict::of_file(&path, LIMITS).unwrap(), verdict);
    std::fs::write(&path, "{}\n").unwrap();
    assert!(Verdict::of_file(&path, LIMITS).is_err(), "a line that is no event is not passed over");
}
