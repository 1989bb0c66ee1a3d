//! Where this workspace is, and cargo in it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, ensure};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `target`, wherever the user has it: this program lies in `target/<profile>`.
pub(crate) fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.context("this program lies outside a target directory; run it as `cargo xtask`")?.to_owned())
}

/// Cargo in the workspace, as if called from the user's shell.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // `cargo xtask` is a `cargo run`, which describes *this* package to us. Build scripts that watch these variables
    // (ring's does) would see a change at every switch between `cargo xtask` and plain cargo, and rebuild all of TLS.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

pub(crate) fn build(arguments: &[&str]) -> Result<()> {
    let status = cargo(&["build"]).args(arguments).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo build {} failed ({status})", arguments.join(" "));
    Ok(())
}

/// Ours is what the program we ran ended with; one that a signal ended counts as failed.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
