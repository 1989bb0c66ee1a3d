//! Integration tests: real RabbitMQ nodes, real worker processes, real models.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod round_trip;
