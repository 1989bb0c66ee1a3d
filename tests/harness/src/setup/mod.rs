//! What a fresh machine lacks: found where it is, else installed, once, into the user's cache.
//!
//! Everything downloaded is pinned by version and SHA-256 (Debian packages: by Debian's own signatures). Each action is
//! one line on standard error; a second call finds what is there and says nothing.

mod apt;
mod conformance;
mod debootstrap;
mod index;
mod onnxruntime;
mod pika;
mod python;
mod rabbitmq;
mod wheel;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process;
pub use conformance::onnx_node_tests;
pub use debootstrap::{debian_base, debian_rootfs};
pub use onnxruntime::{LIBRARY_VARIABLE, ONNXRUNTIME_VERSION, onnxruntime};
pub use pika::pika;
pub use python::python_environment;
pub use rabbitmq::{RabbitMq, rabbitmq};

/// Why the set-up stopped; the message says what to run by hand.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(
        "RabbitMQ is not installed and {reason}.\n  \
         Debian, Ubuntu: sudo apt-get install rabbitmq-server\n  \
         elsewhere:      docker run -d -p 5672:5672 -p 15672:15672 rabbitmq:4-management\n                  \
         then set MILLRACE_TEST_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2f (`xtask test`) or \
         MILLRACE_AMQP_URL (`xtask demo`), and MILLRACE_TEST_MANAGEMENT_URL=http://guest:guest@127.0.0.1:15672"
    )]
    RabbitMqMissing { reason: String },
    #[error(
        "this needs root: {what}. Run the same command as root, or let `sudo -n` work without a password"
    )]
    NeedsRoot { what: &'static str },
    #[error(
        "Python's `venv` is not installed and {reason}.\n  Debian, Ubuntu: sudo apt-get install python3-venv\n  \
         elsewhere:      a Python of version 3.11 or later, as `python3`"
    )]
    PythonMissing { reason: String },
    #[error("there is no pinned {what} for {platform}; {remedy}")]
    UnknownPlatform { what: &'static str, platform: String, remedy: String },
    #[error("{variable}={} does not exist; correct the path, or unset the variable to have one downloaded", path.display())]
    OverrideMissing { variable: &'static str, path: PathBuf },
    #[error("`{command}` failed ({status}); the end of its output ({}):\n{tail}", log.display())]
    Command { command: String, status: String, log: PathBuf, tail: String },
    #[error(
        "{file} could not be downloaded.\n  with pip: {pip}\n  over HTTPS: {https}\nCheck the network and, for a \
         private index, PIP_INDEX_URL and PIP_CERT (SSL_CERT_FILE)"
    )]
    Download { file: &'static str, pip: String, https: String },
    #[error(
        "{file} has SHA-256 {found}, but {pinned} is pinned: not used. An index or a proxy altered it, or the pin is wrong"
    )]
    Checksum { file: &'static str, found: String, pinned: &'static str },
    #[error("{file} has no {member}: the pin is wrong")]
    MemberMissing { file: &'static str, member: String },
    #[error("cannot read {file}")]
    Archive {
        file: &'static str,
        #[source]
        source: zip::result::ZipError,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SetupError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// `${XDG_CACHE_HOME:-~/.cache}/millrace`, created.
///
/// # Errors
/// [`SetupError::Io`] when it cannot be created.
pub fn cache_dir() -> Result<PathBuf, SetupError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_else(|| std::env::temp_dir().join("cache"));
    let dir = base.join("millrace");
    fs::create_dir_all(&dir).map_err(SetupError::io("create", &dir))?;
    Ok(dir)
}

/// One set-up at a time on a machine: test binaries start together and would install the same thing twice.
fn lock() -> Result<File, SetupError> {
    let path = cache_dir()?.join("setup.lock");
    let file = File::create(&path).map_err(SetupError::io("create", &path))?;
    file.lock().map_err(SetupError::io("lock", &path))?;
    Ok(file)
}

fn say(action: &str) {
    eprintln!("millrace set-up: {action}");
}

/// Runs a command with its output in a log of the cache, of which only a failure shows the end.
fn run(command: &mut Command, log_name: &str) -> Result<(), SetupError> {
    let log = cache_dir()?.join(log_name);
    let output = File::create(&log).map_err(SetupError::io("create", &log))?;
    let errors = output.try_clone().map_err(SetupError::io("duplicate", &log))?;
    let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status();
    let status = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(SetupError::Command {
        command: command.get_program().to_string_lossy().into_owned(),
        status,
        tail: process::last_lines(&log, 15),
        log,
    })
}

/// Where `finished` is made, beside it, so that it appears under its own name complete or not at all.
fn unfinished(finished: &Path) -> Result<PathBuf, SetupError> {
    let name = finished.file_name().unwrap_or_default();
    let path = finished.with_file_name(format!("{}.unfinished", name.display()));
    // Left by a set-up that was interrupted.
    if path.exists() {
        fs::remove_dir_all(&path).map_err(SetupError::io("remove", &path))?;
    }
    fs::create_dir_all(&path).map_err(SetupError::io("create", &path))?;
    Ok(path)
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        // A user's PATH often lacks the system directories in which servers and debootstrap live.
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
