//! The command `millrace-worker`: arguments, start, signals, exit codes.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use millrace_common::lifecycle::stop_signal;
use millrace_common::telemetry::logs::{self, Filter};
use tracing::{error, info};

use crate::config::Config;
use crate::load::{Loaded, StartError, load};
use crate::model::backend::Backend;
use crate::model::instance::Failure;
use crate::model::onnx::disable_telemetry;
use crate::pipeline::{self, Worker};

/// Consumes inference requests from RabbitMQ tier queues, runs them in batches on ONNX Runtime, and replies.
///
/// Start as many as you like, anywhere that reaches the broker: capacity grows with each. SIGTERM drains: running
/// batches are finished and answered, everything else goes back to the queue.
#[derive(Debug, Parser)]
#[command(name = "millrace-worker", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Configuration file (TOML); only the keys that differ from the defaults
    #[arg(long, value_name = "FILE", env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,

    /// Check the configuration and the model repository, then exit: 0 if fine, 2 with the key, value and remedy if not
    #[arg(long)]
    check_config: bool,

    /// Print the default configuration with its comments, then exit
    #[arg(long)]
    print_default_config: bool,
}

const AFTER_HELP: &str = "\
Environment:
  MILLRACE_AMQP_URL                     broker address, amqp://USER:PASSWORD@HOST:PORT/VHOST
  MILLRACE__MODELS__REPOSITORY          folder of <model>/<version>/model.onnx
  MILLRACE__ONNXRUNTIME__LIBRARY        path of libonnxruntime.so
  MILLRACE__SECTION__KEY                any other key of the configuration
  RUST_LOG                              log filter, for example debug

Exit codes: 0 drained, 1 could not start (broker, library or model file) or not all was drained in time, 2 the configuration or
the model repository is wrong, 70 an instance crashed, 71 a model hung (inference_timeout_seconds), 130 ended by a second signal.

Example:
  millrace-worker --print-default-config > worker.toml
  MILLRACE_AMQP_URL=amqp://guest:guest@localhost:5672/%2f millrace-worker --config worker.toml";

const READY_FILE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks after the instances.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the command. `wrap` takes each back end once it is warm, and its model's name: tests put faults in their place.
pub fn run(wrap: impl Fn(&str, Box<dyn Backend>) -> Box<dyn Backend> + Send + Sync + 'static) -> ExitCode {
    disable_telemetry();
    let arguments = Arguments::parse();
    if arguments.print_default_config {
        print!("{}", crate::config::DEFAULTS);
        return ExitCode::SUCCESS;
    }
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("millrace-worker: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.check_config {
        return check(&config);
    }
    let filter = logs::init(&config.logs);
    let loaded = match load(&config, Box::new(wrap)) {
        Ok(loaded) => loaded,
        Err(error) => {
            return cannot_start(&error);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker.runtime_threads)
        .enable_all()
        .build()
        .expect("the system has threads for a runtime");
    let code = runtime.block_on(serve(config, loaded, arguments.config, filter));
    // Not waited for: a run that outlasts the grace period would keep the process for as long as it takes.
    runtime.shutdown_background();
    code
}

fn cannot_start(error: &StartError) -> ExitCode {
    error!(%error, "cannot start");
    if error.is_configuration() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

fn check(config: &Config) -> ExitCode {
    match crate::model::repository::scan(
        &config.models.repository,
        &config.models.serve,
        &config.topology.tiers,
    ) {
        Ok(models) => {
            for (name, found) in models {
                println!("model {name}: versions {:?}", found.versions.keys().collect::<Vec<_>>());
            }
            println!("configuration is fine");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("millrace-worker: {error}");
            ExitCode::from(2)
        }
    }
}

async fn serve(config: Config, loaded: Loaded, file: Option<PathBuf>, filter: Filter) -> ExitCode {
    let name = config.worker.name.clone();
    let ready_file = config.worker.ready_file.clone();
    let stop = stop_signal();
    tokio::pin!(stop);
    let worker = tokio::select! {
        started = pipeline::start(config, loaded, file, filter) => match started {
            Ok(worker) => worker,
            Err(error) => return cannot_start(&error),
        },
        _ = &mut stop => return ExitCode::SUCCESS,
    };
    tokio::select! {
        () = announce_ready(&worker, &name) => {}
        failure = failed_instance(&worker) => return failed(failure),
        _ = &mut stop => return drained(worker).await,
    }
    let stopped = tokio::select! {
        stopped = stop => Ok(stopped),
        failure = failed_instance(&worker) => Err(failure),
        never = keep_ready_file(&worker, &ready_file) => match never {},
    };
    remove_ready_file(&ready_file);
    match stopped {
        Ok(stopped) => {
            if let Err(error) = stopped {
                error!(%error, "cannot listen for signals");
            }
            drained(worker).await
        }
        Err(failure) => failed(failure),
    }
}

fn failed(failure: Failure) -> ExitCode {
    match failure {
        Failure::Crashed => {
            error!("an instance thread crashed; ending, so that its requests are delivered again");
            ExitCode::from(70)
        }
        Failure::Hung => {
            error!(
                "a model neither answers nor can be stopped; ending, so that its requests are delivered again"
            );
            ExitCode::from(71)
        }
    }
}

async fn announce_ready(worker: &Worker, name: &str) {
    while let Err(error) = worker.ready(Duration::from_secs(10)).await {
        let reason = error.map_or_else(|| "no answer yet".to_owned(), |error| error.to_string());
        error!(reason, "still not consuming");
    }
    info!(worker = name, "ready");
}

/// Writes `worker.ready_file` every second while requests are consumed, and removes it while the broker is away.
async fn keep_ready_file(worker: &Worker, file: &Path) -> Infallible {
    if file.as_os_str().is_empty() {
        return std::future::pending().await;
    }
    let mut can_write = true;
    loop {
        if worker.ready(READY_FILE_EVERY).await.is_ok() {
            // Anew each time: its age tells that this process still runs.
            let written = std::fs::write(file, "consuming\n");
            if let (Err(error), true) = (&written, can_write) {
                error!(%error, file = %file.display(), "cannot write worker.ready_file; health checks will fail");
            }
            can_write = written.is_ok();
        } else {
            remove_ready_file(file);
        }
        tokio::time::sleep(READY_FILE_EVERY).await;
    }
}

fn remove_ready_file(file: &Path) {
    // Mostly it is not there.
    let _ = std::fs::remove_file(file);
}

async fn failed_instance(worker: &Worker) -> Failure {
    loop {
        if let Some(failure) = worker.look_after_instances() {
            return failure;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn drained(worker: Worker) -> ExitCode {
    if worker.drain().await {
        info!("drained");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
