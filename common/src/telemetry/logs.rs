//! Logs to standard error.

use std::backtrace::Backtrace;
use std::fmt;
use std::io::IsTerminal;
use std::sync::Mutex;

use tracing::{Level, Metadata, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Builder, filter_fn};
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

/// What is logged, changeable while it is.
pub struct Filter {
    /// `RUST_LOG`, which goes before the configuration.
    environment: Option<String>,
    reload: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

impl Filter {
    /// Logs by the configured filter, or by what is switched instead.
    pub fn set(&self, configured: &str, switched: Option<&str>) {
        let filter = switched.or(self.environment.as_deref()).unwrap_or(configured);
        (self.reload)(parsed(filter));
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

/// Values of fields are compared as text: as regular expressions a short one could take all memory.
fn builder() -> Builder {
    EnvFilter::builder().with_regex(false)
}

/// Checks a filter.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    let is_written = builder().parse(trimmed(filter)).map(drop);
    is_written.map_err(|error| format!("write a filter as `info` or `info,millrace_worker=debug`: {error}"))
}

/// The AMQP library logs whole returned messages, and reports its errors to us as well; ONNX Runtime narrates every graph transformation
/// at INFO. What the filter says of them itself comes later and wins. A panic is told whatever it says.
fn parsed(filter: &str) -> EnvFilter {
    builder().parse_lossy(format!("lapin=off,ort=warn,{},{PANICS}=error", trimmed(filter)))
}

/// Without spaces around its parts: their parser counts from the first that is none, and cuts the text as if it had counted from its
/// beginning. `info, debug` named a target so, and what has not only ASCII was cut within a character: a panic.
fn trimmed(filter: &str) -> String {
    let parts: Vec<&str> = filter.split(',').map(str::trim).collect();
    parts.join(",")
}

/// Starts logging. `RUST_LOG` overrides the configured filter. A second call changes nothing. No line waits for its reader.
pub fn init(logs: &Logs) -> Filter {
    let environment = std::env::var("RUST_LOG").ok();
    let filter = parsed(environment.as_deref().unwrap_or(&logs.filter));
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
    // What fails is a reload after the process has given its logs up.
    let (begun, reload): (_, Box<dyn Fn(EnvFilter) + Send + Sync>) = match logs.format {
        LogFormat::Text => {
            let subscriber = subscriber.compact().with_filter_reloading();
            let handle = subscriber.reload_handle();
            (
                subscriber.finish().with(is_harmless).try_init(),
                Box::new(move |filter| drop(handle.reload(filter))),
            )
        }
        LogFormat::Json => {
            let subscriber = subscriber.json().flatten_event(true).with_filter_reloading();
            let handle = subscriber.reload_handle();
            (
                subscriber.finish().with(is_harmless).try_init(),
                Box::new(move |filter| drop(handle.reload(filter))),
            )
        }
    };
    if begun.is_ok() {
        // Written as usual it would wait for a reader, and everybody who logs for it.
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            let thread = std::thread::current();
            error!(target: PANICS, thread = thread.name().unwrap_or("unnamed"), %panic, %backtrace, "panicked");
        }));
    }
    Filter { environment, reload }
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

#[cfg(test)]
mod tests {
    use super::{check_filter, parsed};

    #[test]
    fn spaces_around_a_filters_parts_do_not_matter() {
        for filter in ["info, ΤΤ=debug", " info ,ΤΤ=debug"] {
            assert_eq!(check_filter(filter), Ok(()));
            let parsed = parsed(filter).to_string();
            let parts: Vec<&str> = parsed.split(',').collect();
            assert!(parts.contains(&"ΤΤ=debug") && parts.contains(&"info"), "{parsed}");
        }
    }
}
