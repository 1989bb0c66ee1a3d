//! The `millrace` command. Each command has its file or folder; [`exit`] knows what the process ends with.

mod cancel;
mod dead;
mod demo;
mod doctor;
mod exit;
mod global;
mod infer;
mod infer_input;
mod management;
mod models;
mod output;
mod progress;
mod submit;
mod switch;
mod tally;
mod topology;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::Exit;
use crate::global::Global;

/// Sends inference requests through RabbitMQ to the Millrace fleet, and looks after the broker
///
/// Requests go to a queue per model and tier; workers take them in batches, run the model, and reply. Nothing is lost on
/// the way: a request that the broker has confirmed gets one answer, a result or a reason.
#[derive(Parser)]
#[command(name = "millrace", version, after_help = AFTER_HELP, max_term_width = 120)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  millrace doctor          # can this machine reach broker and workers; what to do if not
  millrace models          # what is served, by whom
  millrace infer digits --input image=[0,0,5,13,...]
  millrace submit requests.jsonl -o results.jsonl --model digits

Environment:
  MILLRACE_AMQP_URL        amqp://USER:PASSWORD@HOST:PORT/VHOST; the virtual host `/` as %2f
  MILLRACE_CONFIG          the configuration file, as --config
  MILLRACE__SECTION__KEY   any key of it, such as MILLRACE__REQUESTS__TIER=premium
  MILLRACE_MANAGEMENT_URL  RabbitMQ's management API, for topology and doctor
  RUST_LOG                 log filter, such as debug

Exit codes:
  0    all is well: every request has its result
  1    some requests failed, a check failed, or a comparison found differences
  2    the command line, the configuration or the input file is wrong
  3    the broker cannot be reached
  130  interrupted (Ctrl-C or SIGTERM); nothing is lost";

#[derive(Subcommand)]
enum Command {
    Submit(submit::Arguments),
    Infer(infer::Arguments),
    Models(models::Arguments),
    Cancel(cancel::Arguments),
    Dead(dead::Arguments),
    Switch(switch::Arguments),
    Topology(topology::Arguments),
    Doctor(doctor::Arguments),
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the system has threads for a runtime");
    let ended = runtime.block_on(run(global, command));
    // A thread may still wait for standard input or a dead host; nothing depends on it any more.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("millrace: {}", exit::text(&error));
            exit::of(&error).into()
        }
    }
}

async fn run(global: Global, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Submit(arguments) => submit::run(&global, arguments).await,
        Command::Infer(arguments) => infer::run(&global, &arguments).await,
        Command::Models(arguments) => models::run(&global, &arguments).await,
        Command::Cancel(arguments) => cancel::run(&global, &arguments).await,
        Command::Dead(arguments) => dead::run(&global, arguments).await,
        Command::Switch(arguments) => switch::run(&global, arguments).await,
        Command::Topology(arguments) => topology::run(&global, arguments).await,
        Command::Doctor(arguments) => doctor::run(&global, &arguments).await,
        Command::Demo(arguments) => demo::run(&global, &arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_command_teaches() {
        let mut command = super::Arguments::command();
        command.build();
        command.clone().debug_assert();
        for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") || command.has_subcommands(), "{}", command.get_name());
        }
    }
}
