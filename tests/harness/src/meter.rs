//! A global allocator that counts, per thread, allocations and their bytes, those alive and their peak. A test program makes it its
//! own with `#[global_allocator] static COUNTING: Counting = Counting;`; without it everything counts as 0.

#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; each method hands its arguments to System unchanged"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

thread_local! {
    // Constant and without a destructor: reading them allocates nothing.
    static ALIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work` and returns with its result the most bytes that were alive at once on this thread, above those alive
/// before. A growing allocation counts twice, old and new, while it moves.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before).unsigned_abs())
}

/// Runs `work` and returns with its result how often it asked for memory, a growing allocation each time that it grew.
pub fn allocations_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNT.get();
    let result = work();
    (result, COUNT.get() - before)
}

/// Runs `work` and returns with its result how many bytes it asked for in all, a growing allocation each time with its new size.
pub fn bytes_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ASKED.get();
    let result = work();
    (result, ASKED.get() - before)
}

fn grow(bytes: usize) {
    COUNT.set(COUNT.get() + 1);
    ASKED.set(ASKED.get() + bytes);
    let alive = ALIVE.get() + bytes as isize;
    ALIVE.set(alive);
    PEAK.set(PEAK.get().max(alive));
}

fn shrink(bytes: usize) {
    ALIVE.set(ALIVE.get() - bytes as isize);
}

// SAFETY: every method forwards to `System`, which upholds the contract; counting touches no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        grow(new_size);
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
