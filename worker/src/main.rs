//! The binary `millrace-worker`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: millrace_worker::Allocator = millrace_worker::Allocator;

fn main() -> ExitCode {
    millrace_worker::command::run(|_, backend| backend)
}
