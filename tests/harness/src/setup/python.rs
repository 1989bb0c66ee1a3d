//! A Python virtual environment with pinned packages: what the fleet is compared with is written in Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::apt::{self, NotInstalled};
use super::{SetupError, lock, run, say};

/// What the environment was made from; written last, so that an interrupted set-up starts anew.
const STAMP: &str = "requirements.sha256";

/// The interpreter of a virtual environment in `dir` that has what `requirements` pins, by version and hash.
///
/// # Errors
/// [`SetupError::PythonMissing`] names the command to run; [`SetupError::Command`] when pip failed.
pub fn python_environment(dir: &Path, requirements: &Path) -> Result<PathBuf, SetupError> {
    let pins = fs::read(requirements).map_err(SetupError::io("read", requirements))?;
    let digest: String = Sha256::digest(&pins).iter().map(|byte| format!("{byte:02x}")).collect();
    let (interpreter, stamp) = (dir.join("bin/python"), dir.join(STAMP));
    let is_made = || fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == digest);
    if is_made() {
        return Ok(interpreter);
    }
    let _alone = lock()?;
    if is_made() {
        return Ok(interpreter);
    }
    install_venv()?;
    say(&format!("python3 -m venv {}", dir.display()));
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir), "python-venv.log")?;
    say(&format!("pip install --requirement {}", requirements.display()));
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--require-hashes", "--only-binary=:all:", "--requirement"]);
    run(pip.arg(requirements), "pip-install.log")?;
    fs::write(&stamp, digest).map_err(SetupError::io("write", &stamp))?;
    Ok(interpreter)
}

/// Debian splits `venv` from its Python.
fn install_venv() -> Result<(), SetupError> {
    if has_venv() {
        return Ok(());
    }
    apt::install(&["python3-venv"]).map_err(|why| match why {
        NotInstalled::Untried(reason) => SetupError::PythonMissing { reason: reason.into() },
        NotInstalled::Failed(error) => error,
    })?;
    if has_venv() {
        return Ok(());
    }
    Err(SetupError::PythonMissing { reason: "the package python3-venv did not bring it".into() })
}

fn has_venv() -> bool {
    let status = Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
