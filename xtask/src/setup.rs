//! `cargo xtask setup`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use millrace_harness::setup;

/// Install what demo and tests need, and show where it is
///
/// RabbitMQ: an installed one, else Debian's package (as root or with `sudo -n`; the package does not get to start a
/// broker of its own). ONNX Runtime and the ONNX project's test cases: pinned Python packages, of which only the library
/// and the cases are kept, in ~/.cache/millrace. A second call changes nothing.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask setup\n  cargo xtask setup --rabbitmq-4.3   also the newer broker, for \
                  `cargo xtask test --rabbitmq 4.3` (root only)"
)]
pub(crate) struct Arguments {
    /// Also a small Debian with RabbitMQ 4.3, 400 MB
    #[arg(long = "rabbitmq-4.3")]
    rabbitmq_4_3: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut found = vec![("RabbitMQ", setup::rabbitmq()?.scripts)];
    if arguments.rabbitmq_4_3 {
        found.push(("RabbitMQ 4.3, root directory", setup::debian_rootfs("sid")?));
    }
    found.push(("ONNX Runtime", setup::onnxruntime()?));
    found.push(("ONNX test cases", setup::onnx_node_tests()?));
    for (what, place) in found {
        println!("{what:<30}{}", place.display());
    }
    Ok(ExitCode::SUCCESS)
}
