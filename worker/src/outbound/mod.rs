//! From verdicts to acknowledgements.
//!
//! - [`dispatch`]: a verdict to the message that carries it out
//! - [`reaper`]: dead letters to verdicts
//! - [`settle`]: publishes it, waits for the confirm, then acknowledges

pub mod dispatch;
pub mod reaper;
pub mod settle;
