//! What Millrace's producers and workers must agree on.
//!
//! - [`protocol`]: the wire contract (Open Inference Protocol v2, JSON and binary), pure code
//! - [`amqp`]: the only home of the AMQP client: connections, topology, publisher, consumer
//! - [`fleet`], [`directory`]: what workers announce about themselves, and who listens
//! - [`tier`]: classes of users and their weights
//! - [`config`]: layered configuration and the sections both sides share
//! - [`lifecycle`]: stopping a process in order
//! - [`telemetry`][]: logs
#![warn(missing_docs)]

pub mod amqp;
mod bounded;
pub mod config;
pub mod control;
pub mod directory;
pub mod fleet;
pub mod lifecycle;
pub mod protocol;
pub mod switches;
pub mod telemetry;
pub mod tier;
