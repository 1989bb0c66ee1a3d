//! The binary `millrace-worker`.

use std::process::ExitCode;

/// Threads free what others have allocated, in sizes that change with the load: the system's allocator keeps more and more of it
/// apart, and takes longer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    millrace_worker::command::run(|_, backend| backend)
}
