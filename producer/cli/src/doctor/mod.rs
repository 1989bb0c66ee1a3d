//! `millrace doctor`

mod broker;
mod fleet;
mod report;
mod topology;

use std::path::Path;

use anyhow::Result;
use clap::Args;
use millrace_producer::Config;

use self::report::Report;
use crate::exit::{Exit, text};
use crate::global::{Global, connector};
use crate::management::{Management, Place};

/// The worker's key for its library, as a variable.
const LIBRARY_VARIABLE: &str = "MILLRACE__ONNXRUNTIME__LIBRARY";

/// Check the way from here to the workers, and name the fix for whatever is wrong
///
/// Looks at the configuration, the broker (address, version, permissions, a reply's way back), the topology and policies, the
/// workers and their clocks. Changes nothing: what it creates on the broker goes with its connection.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
}

const AFTER_HELP: &str = "\
`✓` is well, `!` is worth a look, `✗` has to be fixed; the fix stands below.

Examples:
  millrace doctor
  millrace doctor --amqp amqps://broker:5671/%2f --management-url https://broker:15671

Exit codes: 0 nothing has to be fixed, 1 something has.";

pub(crate) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let mut report = Report::default();
    let config = match global.load() {
        Ok(config) => config,
        Err(error) => {
            report.bad("configuration", &text(&error), "correct what it names");
            return Ok(report.exit());
        }
    };
    let from = global.config.as_ref().map_or_else(
        || "defaults and environment".to_owned(),
        |file| format!("{}, then the environment", file.display()),
    );
    report.good("configuration", &from);
    library(&mut report);
    if broker::is_reached(&mut report, &config).await {
        check_broker(&mut report, &config, &arguments.place).await?;
    }
    Ok(report.exit())
}

async fn check_broker(report: &mut Report, config: &Config, place: &Place) -> Result<()> {
    let connector = connector(config)?;
    let management = Management::new(config, place)?;
    broker::version(report, config, &management).await;
    let models = if broker::may_listen(report, config, &connector).await {
        fleet::check(report, config, &connector).await
    } else {
        Default::default()
    };
    topology::check(report, config, &connector, &management, &models).await;
    broker::may_publish(report, config, &connector).await;
    broker::round_trip(report, config).await;
    Ok(())
}

/// Only workers need it, and they say so themselves; a variable that leads nowhere is worth knowing before.
fn library(report: &mut Report) {
    let Some(path) = std::env::var_os(LIBRARY_VARIABLE) else { return };
    let path = Path::new(&path);
    if path.is_file() {
        report.good("ONNX Runtime", &format!("{}", path.display()));
    } else {
        report.bad(
            "ONNX Runtime",
            &format!("{LIBRARY_VARIABLE} is {}, and there is no such file", path.display()),
            "set it to the path of libonnxruntime.so; `cargo xtask setup` fetches one and prints the path",
        );
    }
}
