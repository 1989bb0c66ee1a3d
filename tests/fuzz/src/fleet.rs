//! What processes tell each other.

use std::time::Instant;

use millrace_common::control::Control;
use millrace_common::fleet::{Fleet, WorkerStatus};
use millrace_common::switches::{Record, Switches};

use crate::memory::{metered, metered_within};

/// A message of the control exchange.
pub fn control(input: &[u8]) {
    if let Some(control) = metered(input.len(), || Control::read(input)) {
        assert_eq!(Control::read(&control.write()), Some(control));
    }
}

/// A record of the stream of switches. One that is read counts whole, or not at all.
pub fn switches(input: &[u8]) {
    let Some(record) = metered(input.len(), || Record::read(input).ok()) else { return };
    let mut switches = Switches::default();
    let taken = metered(input.len(), || switches.apply(&record, "ann", record.at_ms));
    assert!(taken.is_ok(), "{taken:?}");
    let held: Vec<String> = switches.hold(record.at_ms).iter().map(|entry| entry.setting.name()).collect();
    // What the clock cannot tell any more has ended.
    assert!(held.iter().eq(record.set.keys()) || record.at_ms > u64::MAX - 700_000_000, "{held:?}");
    let again = serde_json::to_vec(&record).expect("it serializes");
    assert_eq!(Record::read(&again), Ok(record));
}

/// A worker's announcement. Workers alone may publish them, and its lists of short items take more than they do as text.
pub fn status(input: &[u8]) {
    let mut fleet = Fleet::default();
    metered_within(24 * input.len() + (1 << 20), || fleet.hear(input, Instant::now()));
    let heard: Vec<WorkerStatus> = fleet.workers().cloned().collect();
    for status in heard {
        for model in &status.models {
            assert_ne!(fleet.pack_rows(&model.name, Some(model.version)), Some(0));
        }
        assert!(fleet.slowness(&status.models) > 0.0);
        let mut again = Fleet::default();
        again.hear(&serde_json::to_vec(&status).expect("it serializes"), Instant::now());
        assert_eq!(again.workers().next(), Some(&status));
    }
}
