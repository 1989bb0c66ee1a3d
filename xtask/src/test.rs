//! `cargo xtask test`

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use millrace_harness::broker::{AMQP_VARIABLE, Broker, BrokerOptions, MANAGEMENT_VARIABLE, ROOT_VARIABLE};
use millrace_harness::{process, setup};

use crate::workspace;

/// The ONNX project's backend node cases, for the worker's conformance tests.
const NODE_TESTS_VARIABLE: &str = "MILLRACE_ONNX_NODE_TESTS";

/// Run all tests, against a real broker and real workers
///
/// Sets up, builds the binaries, starts one private broker that the tests share, and runs `cargo test --workspace` (unit,
/// integration and documentation tests). Exits with cargo's exit code. MILLRACE_TEST_AMQP_URL and
/// MILLRACE_TEST_MANAGEMENT_URL, if set, name a broker to share instead.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask test\n  cargo xtask test -- -p millrace-tests round_trip   one package, tests by \
                  name\n  cargo xtask test --rabbitmq 4.3                  the newest broker (root only, 400 MB once)"
)]
pub(crate) struct Arguments {
    /// Which broker to test against
    #[arg(long, value_enum, default_value_t = RabbitMqVersion::System)]
    rabbitmq: RabbitMqVersion,
    /// Passed on to `cargo test`
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum RabbitMqVersion {
    /// The one of this machine
    System,
    /// Debian sid's, in a root directory of its own
    #[value(name = "4.3")]
    Newest,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    run_with(arguments.rabbitmq, &arguments.arguments, &[])
}

/// Runs `cargo test` with these arguments and more environment.
pub(crate) fn run_with(
    rabbitmq: RabbitMqVersion,
    arguments: &[String],
    more: &[(&'static str, OsString)],
) -> Result<ExitCode> {
    let mut environment = set_up(rabbitmq)?;
    environment.extend_from_slice(more);
    let profile = match arguments.iter().any(|argument| argument == "--release") {
        true => "release",
        false => "debug",
    };
    let mut build = vec!["--workspace", "--bins"];
    if profile == "release" {
        build.push("--release");
    }
    workspace::build(&build)?;
    environment.push((process::BINARIES_VARIABLE, workspace::target()?.join(profile).into()));
    // Held until the tests have ended.
    let _broker = share_broker(&mut environment)?;
    let mut command = workspace::cargo(&["test"]);
    // With --workspace cargo would ignore a chosen package.
    let chosen = arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| argument.starts_with("-p") || argument.starts_with("--package"));
    if !chosen {
        command.arg("--workspace");
    }
    let status = command.args(arguments).envs(environment).status().context("cannot run cargo")?;
    Ok(workspace::exit_code(status))
}

fn set_up(rabbitmq: RabbitMqVersion) -> Result<Vec<(&'static str, OsString)>> {
    let mut environment = vec![
        (setup::LIBRARY_VARIABLE, setup::onnxruntime()?.into()),
        (NODE_TESTS_VARIABLE, setup::onnx_node_tests()?.into()),
    ];
    if rabbitmq == RabbitMqVersion::Newest {
        environment.push((ROOT_VARIABLE, setup::debian_rootfs("sid")?.into()));
    }
    Ok(environment)
}

/// Starts the broker that all test binaries share, unless the user names one.
fn share_broker(environment: &mut Vec<(&'static str, OsString)>) -> Result<Option<Broker>> {
    if std::env::var_os(AMQP_VARIABLE).is_some() {
        return Ok(None);
    }
    let root = environment.iter().find(|(name, _)| *name == ROOT_VARIABLE).map(|(_, root)| root.into());
    let broker = Broker::start(BrokerOptions { root, ..BrokerOptions::default() })?;
    eprintln!("Testing against RabbitMQ {} at {}", broker.version(), broker.amqp_url());
    environment.push((AMQP_VARIABLE, broker.amqp_url().into()));
    environment.push((MANAGEMENT_VARIABLE, broker.management_url().into()));
    Ok(Some(broker))
}
