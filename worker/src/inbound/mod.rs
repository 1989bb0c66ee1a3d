//! From deliveries to jobs.
//!
//! - [`cancelled`]: requests that their callers have cancelled
//! - [`clock`]: how far requesters' clocks are from ours
//! - [`demand`]: how much of a queue is taken ahead
//! - [`hostility`]: messages that must not be answered nor run
//! - [`intake`]: takes deliveries, refuses hostile ones
//! - [`decode`]: bodies to requests, off the runtime where they are large
//! - `receive`: deliveries to duties
//! - [`remembered`]: requests that are not to run, as a set
//! - [`route`]: what a worker consumes of one model and tier
//! - [`solo`]: suspects run with nothing beside them
//! - [`suspects`]: requests that may have ended the process that ran them
//! - [`admission`]: requests to jobs, checked against the model's signature

pub mod admission;
pub mod cancelled;
pub mod clock;
pub mod decode;
pub mod demand;
pub mod hostility;
pub mod intake;
mod receive;
pub mod remembered;
pub mod route;
pub mod solo;
pub mod suspects;
