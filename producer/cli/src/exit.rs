//! What the process ends with.

use std::process::ExitCode;

use millrace_common::amqp::connection::ConnectError as LinkError;
use millrace_common::amqp::inspect::InspectError;
use millrace_common::amqp::topology::ApplyError;
use millrace_common::config::load::ConfigError;
use millrace_producer::ConnectError;

/// The exit codes, as `millrace --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well.
    Success = 0,
    /// Some requests or checks failed.
    Failed = 1,
    /// The command line, the configuration or the input is wrong.
    Usage = 2,
    /// No broker.
    Unreachable = 3,
    /// Ctrl-C or SIGTERM.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A mistake of the caller's: exit code 2. The text names the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(String);

/// A mistake of the caller's, as an error.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// An error and its causes, each said once: some of them repeat their cause.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The code for an error.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failed)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<Usage>() || cause.is::<ConfigError>() {
        return Some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<ConnectError>() {
        return Some(match error {
            ConnectError::Config(_) | ConnectError::User { .. } | ConnectError::ReplyKey { .. } => {
                Exit::Usage
            }
            ConnectError::Broker(error) => of_link(error),
            ConnectError::Timeout(_) => Exit::Unreachable,
            ConnectError::Topology(error) => of_apply(error),
        });
    }
    if let Some(error) = cause.downcast_ref::<ApplyError>() {
        return Some(of_apply(error));
    }
    if let Some(InspectError::Connect(error)) = cause.downcast_ref::<InspectError>() {
        return Some(of_link(error));
    }
    cause.downcast_ref::<LinkError>().map(of_link)
}

fn of_apply(error: &ApplyError) -> Exit {
    match error {
        ApplyError::Connect(error) => of_link(error),
        ApplyError::Lost(_) | ApplyError::NodeDown(_) => Exit::Unreachable,
        ApplyError::Declare(_) => Exit::Failed,
    }
}

fn of_link(error: &LinkError) -> Exit {
    match error {
        LinkError::TlsFile { .. } => Exit::Usage,
        LinkError::Refused { .. } => Exit::Unreachable,
        LinkError::Unusable { .. } => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("cause").context("repeats its cause").context("top");
        assert_eq!(text(&error), "top: repeats its cause");
    }

    #[test]
    fn errors_have_the_documented_codes() {
        let refused = || LinkError::Refused { address: "a".into(), reason: "r".into() };
        for (error, wanted) in [
            (usage("no model"), Exit::Usage),
            (usage("no model").context("line 1"), Exit::Usage),
            (refused().into(), Exit::Unreachable),
            (ConnectError::Broker(refused()).into(), Exit::Unreachable),
            (ConnectError::Topology(ApplyError::Connect(refused())).into(), Exit::Unreachable),
            (InspectError::Connect(refused()).into(), Exit::Unreachable),
            (ConnectError::User { user: "ü".into() }.into(), Exit::Usage),
            (anyhow::anyhow!("disk full"), Exit::Failed),
        ] {
            assert_eq!(of(&error), wanted, "{error:#}");
        }
    }
}
