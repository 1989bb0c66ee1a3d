//! From verdicts to acknowledgements.
//!
//! - [`confirms`]: how long the broker takes to confirm
//! - [`dispatch`]: a verdict to the message that carries it out
//! - [`gather`]: which replies leave together
//! - [`readers`]: requesters that cannot be answered at the moment
//! - [`reaper`]: dead letters to verdicts
//! - [`settle`]: publishes it, waits for the confirm, then acknowledges

pub mod access_log;
pub mod confirms;
pub mod dispatch;
pub mod gather;
pub mod readers;
pub mod reaper;
pub mod settle;
