//! Finds RabbitMQ's real start scripts, or installs the Debian package.

use std::path::{Path, PathBuf};

use super::apt::{self, NotInstalled};
use super::{SetupError, find_in_path, lock};

/// Where Debian, Ubuntu and the RPMs put the scripts that the wrappers in `sbin` call.
const PACKAGED: &str = "/usr/lib/rabbitmq/bin";

/// An installed RabbitMQ: on this machine, or inside a root directory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RabbitMq {
    /// Directory of `rabbitmq-server` and `rabbitmqctl`, as seen from inside `root`.
    pub scripts: PathBuf,
    /// A chroot, when it is not this machine's own.
    pub root: Option<PathBuf>,
}

impl RabbitMq {
    /// The RabbitMQ in a root directory, such as [`super::debian_rootfs`] makes.
    ///
    /// # Errors
    /// [`SetupError::RabbitMqMissing`] when there is none in it.
    pub fn in_root(root: &Path) -> Result<Self, SetupError> {
        let scripts = root.join(PACKAGED.trim_start_matches('/'));
        if !scripts.join("rabbitmq-server").exists() {
            return Err(SetupError::RabbitMqMissing {
                reason: format!("the root directory {} has none", root.display()),
            });
        }
        if !apt::is_root() {
            return Err(SetupError::NeedsRoot {
                what: "a RabbitMQ in a root directory of its own runs under chroot",
            });
        }
        Ok(Self { scripts: PACKAGED.into(), root: Some(root.to_owned()) })
    }
}

/// The RabbitMQ of this machine; installs Debian's package when there is none.
///
/// # Errors
/// [`SetupError::RabbitMqMissing`] names the command to run; [`SetupError::Command`] when the installation failed.
pub fn rabbitmq() -> Result<RabbitMq, SetupError> {
    if let Some(found) = installed() {
        return Ok(found);
    }
    let _alone = lock()?;
    if let Some(found) = installed() {
        return Ok(found);
    }
    apt::install(&["rabbitmq-server"]).map_err(|why| match why {
        NotInstalled::Untried(reason) => SetupError::RabbitMqMissing { reason: reason.into() },
        NotInstalled::Failed(error) => error,
    })?;
    installed().ok_or_else(|| SetupError::RabbitMqMissing {
        reason: "its package brought no rabbitmq-server".into(),
    })
}

fn installed() -> Option<RabbitMq> {
    let candidates = [Some(PathBuf::from(PACKAGED)), scripts_in_path()];
    let scripts = candidates.into_iter().flatten().find(|dir| has_scripts(dir))?;
    Some(RabbitMq { scripts, root: None })
}

fn scripts_in_path() -> Option<PathBuf> {
    let server = find_in_path("rabbitmq-server")?.canonicalize().ok()?;
    Some(server.parent()?.to_owned())
}

/// The real scripts read a neighbour `rabbitmq-env`. Packagers' wrappers have none beside them, and they change user and
/// directory, which a private node cannot use.
fn has_scripts(dir: &Path) -> bool {
    ["rabbitmq-server", "rabbitmqctl", "rabbitmq-env"].iter().all(|script| dir.join(script).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_not_taken_for_the_real_scripts() {
        let dir = tempfile::tempdir().unwrap();
        for script in ["rabbitmq-server", "rabbitmqctl"] {
            std::fs::write(dir.path().join(script), "").unwrap();
        }
        assert!(!has_scripts(dir.path()));
        std::fs::write(dir.path().join("rabbitmq-env"), "").unwrap();
        assert!(has_scripts(dir.path()));
    }

    #[test]
    fn a_root_without_rabbitmq_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = RabbitMq::in_root(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
    }
}
