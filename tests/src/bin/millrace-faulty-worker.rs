//! A worker in which requests may bring about faults: see `millrace_tests::faulty`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_worker::command::run(|model, backend| {
        Box::new(millrace_tests::faulty::Faulty::around(model, backend))
    })
}
