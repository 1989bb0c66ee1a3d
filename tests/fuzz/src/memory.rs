//! What reading takes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_harness::meter::{Counting, peak_of};

#[global_allocator]
static COUNTING: Counting = Counting;

/// Names a file that keeps the highest peak of the run, in bytes.
pub const PEAK_VARIABLE: &str = "MILLRACE_FUZZ_PEAK";

const PER_BYTE: usize = 4;
const BASE: usize = 1 << 20;

/// The most bytes that reading an input of so many may have allocated at once.
pub const fn bound(input_bytes: usize) -> usize {
    PER_BYTE * input_bytes + BASE
}

/// Runs `read` on an input of so many bytes.
///
/// # Panics
/// When it takes more than [`bound`].
pub(crate) fn metered<T>(input_bytes: usize, read: impl FnOnce() -> T) -> T {
    metered_within(bound(input_bytes), read)
}

/// As [`metered`], with a bound of its own.
pub(crate) fn metered_within<T>(most: usize, read: impl FnOnce() -> T) -> T {
    let (result, peak) = peak_of(read);
    assert!(peak <= most, "{peak} bytes of memory, the bound is {most}");
    note(peak);
    result
}

fn note(peak: usize) {
    static FILE: OnceLock<Option<std::ffi::OsString>> = OnceLock::new();
    static HIGHEST: AtomicUsize = AtomicUsize::new(0);
    if HIGHEST.fetch_max(peak, Ordering::Relaxed) < peak
        && let Some(file) = FILE.get_or_init(|| std::env::var_os(PEAK_VARIABLE))
    {
        std::fs::write(file, peak.to_string()).expect("the file for the peak is writable");
    }
}
