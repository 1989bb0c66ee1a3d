//! Installs Debian packages without letting them start a service.

use std::process::{Command, Stdio};

use super::{SetupError, find_in_path, run, say};

const SCRIPT: &str = include_str!("apt-install.sh");

/// Why packages are not there now.
pub(super) enum NotInstalled {
    /// It could not even be tried.
    Untried(&'static str),
    Failed(SetupError),
}

/// Installs `packages` when this is a Debian-like machine and we are root or `sudo -n` works.
pub(super) fn install(packages: &[&str]) -> Result<(), NotInstalled> {
    if find_in_path("apt-get").is_none() {
        return Err(NotInstalled::Untried("there is no apt-get to install it with"));
    }
    let Some(mut shell) = privileged("sh") else {
        return Err(NotInstalled::Untried(
            "installing it needs root (we are not root, and `sudo -n` asks for a password)",
        ));
    };
    say(&format!("apt-get install {}", packages.join(" ")));
    shell.args(["-c", SCRIPT, "sh"]).args(packages);
    run(&mut shell, "apt-install.log").map_err(NotInstalled::Failed)
}

/// `program` to be run as root, or nothing if we may not.
pub(super) fn privileged(program: &str) -> Option<Command> {
    if is_root() {
        return Some(Command::new(program));
    }
    let allowed = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    allowed.then(|| {
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        command
    })
}

pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
