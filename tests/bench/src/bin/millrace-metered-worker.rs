//! A worker that tells what it has allocated and not freed, five times a second: what an allocator keeps beyond that comes and goes by
//! many MiB, in which a leak would hide for hours.

#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait, and so is the C library's count of what it has given out"
)]

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TELLS_EVERY: Duration = Duration::from_millis(200);

/// Bytes of the Rust code's allocations that are alive.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// The worker's allocator, counted.
struct Metered;

#[global_allocator]
static ALLOCATOR: Metered = Metered;

static WORKERS: millrace_worker::Allocator = millrace_worker::Allocator;

// SAFETY: every method forwards to the worker's allocator, which upholds the contract; counting touches no allocation.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { WORKERS.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { WORKERS.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { WORKERS.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALIVE.fetch_add(new_size, Ordering::Relaxed);
        ALIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { WORKERS.realloc(pointer, layout, new_size) }
    }
}

/// Bytes that the C library has given out and not taken back, to ONNX Runtime mostly. Asks glibc, 2.33 or later; others are not asked.
fn of_c() -> usize {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes nothing, and locks what it reads.
        let info = unsafe { nix::libc::mallinfo2() };
        info.uordblks + info.hblkhd
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

fn main() -> ExitCode {
    let started = Instant::now();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(TELLS_EVERY);
            println!(
                "alive {:.1} {} {}",
                started.elapsed().as_secs_f64(),
                ALIVE.load(Ordering::Relaxed),
                of_c()
            );
        }
    });
    millrace_worker::command::run(|_, backend| backend)
}
