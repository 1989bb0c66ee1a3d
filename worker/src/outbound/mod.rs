//! From verdicts to acknowledgements.
//!
//! - [`dispatch`]: a verdict to the message that carries it out
//! - [`settle`]: publishes it, waits for the confirm, then acknowledges

pub mod dispatch;
pub mod settle;
