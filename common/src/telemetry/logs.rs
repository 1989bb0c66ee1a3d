//! Logs to standard error.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::sections::{LogFormat, Logs};

/// Starts logging. `RUST_LOG` overrides the configured filter. A second call does nothing.
pub fn init(logs: &Logs) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| logs.filter.clone());
    // The AMQP library logs whole returned messages, and reports its errors to us as well; ONNX Runtime narrates every
    // graph transformation at INFO. What the filter says of them itself comes later and wins.
    let filter = EnvFilter::builder().parse_lossy(format!("lapin=off,ort=warn,{filter}"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false);
    let is_harmless = filter_fn(shows_no_password);
    let _ = match logs.format {
        LogFormat::Text => subscriber.compact().finish().with(is_harmless).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).finish().with(is_harmless).try_init(),
    };
}

/// Whatever the filter says: at TRACE the AMQP library writes every frame, and the first one holds the password.
fn shows_no_password(metadata: &Metadata<'_>) -> bool {
    !(metadata.target().starts_with("lapin") && *metadata.level() == Level::TRACE)
}
