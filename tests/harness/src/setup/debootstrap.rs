//! A small Debian of its own: for a RabbitMQ newer than this machine's packages, and to make container images of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::{self, NotInstalled};
use super::{SetupError, cache_dir, find_in_path, lock, run, say, unfinished};

const MIRROR: &str = "http://deb.debian.org/debian";

/// Root directory of Debian `suite` (`trixie`: RabbitMQ 4.0, `sid`: 4.3) with RabbitMQ in it, 400 MB.
///
/// # Errors
/// [`SetupError::NeedsRoot`] without root (nodes in it run under chroot), and whatever debootstrap meets.
pub fn debian_rootfs(suite: &str) -> Result<PathBuf, SetupError> {
    let root = cache_dir()?.join("rootfs").join(suite);
    let what = "RabbitMQ out of a newer Debian is installed and run under chroot";
    bootstrapped(root, suite, &["rabbitmq-server", "ca-certificates"], what)
}

/// Root directory of Debian `suite` with no more than every Debian has, and certificates: 220 MB.
///
/// # Errors
/// [`SetupError::NeedsRoot`] without root, and whatever debootstrap meets.
pub fn debian_base(suite: &str) -> Result<PathBuf, SetupError> {
    let root = cache_dir()?.join("rootfs").join(format!("{suite}-base"));
    bootstrapped(root, suite, &["ca-certificates"], "debootstrap installs a Debian under chroot")
}

fn bootstrapped(
    root: PathBuf,
    suite: &str,
    packages: &[&str],
    what: &'static str,
) -> Result<PathBuf, SetupError> {
    if !apt::is_root() {
        return Err(SetupError::NeedsRoot { what });
    }
    if root.is_dir() {
        return Ok(root);
    }
    let _alone = lock()?;
    if root.is_dir() {
        return Ok(root);
    }
    if find_in_path("debootstrap").is_none() {
        apt::install(&["debootstrap"]).map_err(|why| match why {
            NotInstalled::Untried(_) => {
                SetupError::NeedsRoot { what: "debootstrap is not installed (apt-get install debootstrap)" }
            }
            NotInstalled::Failed(error) => error,
        })?;
    }
    let unfinished = unfinished(&root)?;
    bootstrap(suite, &unfinished, packages)?;
    fs::rename(&unfinished, &root).map_err(SetupError::io("rename", &unfinished))?;
    Ok(root)
}

fn bootstrap(suite: &str, root: &Path, packages: &[&str]) -> Result<(), SetupError> {
    let packages = packages.join(",");
    say(&format!("debootstrap {suite} with {packages}"));
    // A mount namespace of its own: debootstrap mounts /proc in the new root, and when it is killed that mount must go
    // with it, or the next clean-up would delete through it.
    let mut command = Command::new("unshare");
    command
        .arg("--mount")
        .arg("debootstrap")
        .arg("--variant=minbase")
        .arg(format!("--include={packages}"))
        .arg(suite)
        .arg(root)
        .arg(MIRROR)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut command, "debootstrap.log")?;
    // Without /etc/hosts a node hangs at its prelaunch: it cannot resolve its own host.
    for file in ["etc/hosts", "etc/resolv.conf"] {
        let source = Path::new("/").join(file);
        if source.exists() {
            fs::copy(&source, root.join(file)).map_err(SetupError::io("copy", &source))?;
        }
    }
    Ok(())
}
