//! Integration tests: real RabbitMQ nodes, real worker processes, real models.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod batching;
mod broker_restart;
mod bundles;
mod calling;
mod chaos;
mod deadlines;
mod full_queue;
mod hostile;
mod malformed;
mod packing;
mod padding;
mod readme;
mod round_trip;
mod secrets;
mod shards;
mod start_errors;
mod submit;
mod telemetry;
mod unreadable;
mod versions;
mod worker_death;
