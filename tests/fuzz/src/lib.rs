//! Fuzz targets: functions that take any bytes and panic where something does not hold.
//!
//! None may panic, whatever the bytes are; each has a property beside; and reading takes no more memory than [`bound`] allows.
//! `cargo test` runs each for a second with random bytes and the seeds in `corpus`, `cargo xtask fuzz` for as long as wanted,
//! guided by coverage.

mod amqp;
mod batch;
mod fleet;
mod memory;
mod protocol;
mod settings;

pub use amqp::{bundle, envelope, headers};
pub use batch::batch;
pub use fleet::{control, status, switches};
pub use memory::{PEAK_VARIABLE, bound};
pub use protocol::{binary, bytes_strings, json};
pub use settings::{configuration, model_config};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("envelope", envelope),
    ("headers", headers),
    ("bundle", bundle),
    ("json", json),
    ("binary", binary),
    ("bytes_strings", bytes_strings),
    ("batch", batch),
    ("control", control),
    ("status", status),
    ("switches", switches),
    ("configuration", configuration),
    ("model_config", model_config),
];

/// Splits the first bytes off, as many as there are.
fn split(input: &[u8], at: usize) -> (&[u8], &[u8]) {
    input.split_at(at.min(input.len()))
}

/// The first byte, or 0, and what follows it.
fn first(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(first, rest)| (*first, rest))
}

/// A length of two bytes, and what follows it.
fn length(input: &[u8]) -> (usize, &[u8]) {
    let (low, rest) = first(input);
    let (high, rest) = first(rest);
    (usize::from(u16::from_le_bytes([low, high])), rest)
}
