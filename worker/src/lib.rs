//! The Millrace worker: consumes tier queues, shares its time between them, batches, runs the model, replies.
//!
//! The folder listing is the architecture; [`pipeline`] joins the rooms:
//! [`inbound`] → [`schedule`] → [`model`] → [`outbound`].
// That the settler's futures are `Send` is found through all that an AMQP connection is made of.
#![recursion_limit = "256"]

pub mod catalogue;
pub mod command;
pub mod config;
pub mod guard;
pub mod inbound;
pub mod job;
pub mod live;
pub mod load;
pub mod model;
pub mod outbound;
pub mod pipeline;
pub mod schedule;
pub mod status;
pub mod swap;

/// Of a worker's program. Threads free what others have allocated, in sizes that change with the load: the system's allocator keeps more
/// and more of it apart, and takes longer.
pub use mimalloc::MiMalloc as Allocator;
