//! Logs to standard error.

use std::backtrace::Backtrace;
use std::io::IsTerminal;
use std::sync::Mutex;

use tracing::{Level, Metadata, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::stderr::Lines;
use crate::config::sections::{LogFormat, Logs};

/// What is said in place of lines that nobody read in time.
const LOST: &str = "log lines were lost: whoever reads standard error reads too little";

/// Where panics are told of.
const PANICS: &str = "panics";

/// Starts logging. `RUST_LOG` overrides the configured filter. A second call does nothing. No line waits for its reader.
pub fn init(logs: &Logs) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| logs.filter.clone());
    // The AMQP library logs whole returned messages, and reports its errors to us as well; ONNX Runtime narrates every
    // graph transformation at INFO. What the filter says of them itself comes later and wins. A panic is told whatever it says.
    let filter = EnvFilter::builder().parse_lossy(format!("lapin=off,ort=warn,{filter},{PANICS}=error"));
    let report = match logs.format {
        LogFormat::Text => report_as_text,
        LogFormat::Json => report_as_json,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(Mutex::new(Lines::to(std::io::stderr(), report)))
        .with_target(false);
    let is_harmless = filter_fn(shows_no_password);
    let begun = match logs.format {
        LogFormat::Text => subscriber.compact().finish().with(is_harmless).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).finish().with(is_harmless).try_init(),
    };
    if begun.is_ok() {
        // Written as usual it would wait for a reader, and everybody who logs for it.
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            let thread = std::thread::current();
            error!(target: PANICS, thread = thread.name().unwrap_or("unnamed"), %panic, %backtrace, "panicked");
        }));
    }
}

/// Whatever the filter says: at TRACE the AMQP library writes every frame, and the first one holds the password.
fn shows_no_password(metadata: &Metadata<'_>) -> bool {
    !(metadata.target().starts_with("lapin") && *metadata.level() == Level::TRACE)
}

fn report_as_text(lost: u64) -> String {
    format!("{}  WARN {LOST} lost={lost}", now())
}

fn report_as_json(lost: u64) -> String {
    serde_json::json!({"timestamp": now(), "level": "WARN", "message": LOST, "lost": lost}).to_string()
}

fn now() -> String {
    let mut text = String::new();
    // Text takes all.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}
