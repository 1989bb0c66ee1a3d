//! Faults of every kind under load, each judged by its ledger. Short ones run with all tests; `cargo xtask faults` runs all.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod ack_timeout;
mod alarms;
mod broker_restart;
mod chaos;
mod cluster;
mod degradation;
mod duplicates;
mod endurance;
mod frozen;
mod full_queue;
mod gone;
mod herd;
mod hops;
mod misconfigured;
mod network;
mod oversize;
mod passwords;
mod poison;
mod readers;
mod soak;
mod stalled_logs;
mod stopping;
mod swapping;
mod switches;
mod worker_death;
