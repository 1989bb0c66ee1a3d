//! `cargo xtask …`: set-up, demo and tests on a machine that has nothing but Rust.

mod bench;
mod chaos;
mod compose_test;
mod demo;
mod down;
mod evidence;
mod faults;
mod fleet;
mod fuzz;
mod setup;
mod state;
mod test;
mod up;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Runs Millrace on this machine: demo, a small fleet, the tests
///
/// Every command first looks for what it needs (RabbitMQ, ONNX Runtime) and installs what is missing, once: Debian packages
/// with apt, the rest into ~/.cache/millrace. No command touches a RabbitMQ that runs on this machine already: each starts a
/// private one on free ports.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 120,
    after_help = "Start here:\n  cargo xtask demo        see it work; the first time builds for some minutes\n  \
                  cargo xtask up          keep a broker and two workers running, and try things\n  \
                  cargo xtask test        run all tests"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Arguments),
    Demo(demo::Arguments),
    Up(up::Arguments),
    Down(down::Arguments),
    Test(test::Arguments),
    Chaos(chaos::Arguments),
    Faults(faults::Arguments),
    Evidence(evidence::Arguments),
    Fuzz(fuzz::Arguments),
    ComposeTest(compose_test::Arguments),
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Up(arguments) => up::run(&arguments),
        Command::Down(arguments) => down::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Chaos(arguments) => chaos::run(&arguments),
        Command::Faults(arguments) => faults::run(&arguments),
        Command::Evidence(arguments) => evidence::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::ComposeTest(arguments) => compose_test::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    }
}
