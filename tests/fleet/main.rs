//! What a fleet does over some seconds of load. A target of its own, so that nothing else runs meanwhile.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod shares;
mod unequal;

/// One test at a time: each is about what the machine can do.
static MACHINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
