//! A worker in which requests may bring about faults: see `millrace_tests::faulty`.

use std::process::ExitCode;

/// As in `millrace-worker`: checks of a worker's memory are about this one's.
#[global_allocator]
static ALLOCATOR: millrace_worker::Allocator = millrace_worker::Allocator;

fn main() -> ExitCode {
    millrace_worker::command::run(|model, backend| {
        Box::new(millrace_tests::faulty::Faulty::around(model, backend))
    })
}
