//! From deliveries to jobs.
//!
//! - [`clock`]: how far requesters' clocks are from ours
//! - [`demand`]: how much of a queue is taken ahead
//! - [`intake`]: takes deliveries, refuses hostile ones
//! - [`decode`]: bodies to requests, off the runtime where they are large
//! - [`admission`]: requests to jobs, checked against the model's signature

pub mod admission;
pub mod clock;
pub mod decode;
pub mod demand;
pub mod intake;
