//! What keeps a worker from harm that requests, models and drivers do.
//!
//! - [`watchdog`]: runs that do not end

pub mod breaker;
pub mod ladder;
pub mod watchdog;
