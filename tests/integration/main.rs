//! Integration tests: real RabbitMQ nodes, real worker processes, real models.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod batching;
mod bundles;
mod caching;
mod calling;
mod cancelling;
mod dead;
mod deadlines;
mod hostile;
mod memory;
mod packing;
mod padding;
mod readme;
mod refused;
mod rights;
mod round_trip;
mod secrets;
mod shards;
mod start_errors;
mod submit;
mod switches;
mod telemetry;
mod tls;
mod unreadable;
mod versions;
