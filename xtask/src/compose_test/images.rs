//! What compose/docker-compose.debian.yml is built from: a base image of Debian packages, and folders with our binaries.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use millrace_harness::setup;

use super::engine::{docker, quiet};
use crate::workspace;

const BASE: &str = "millrace-debian/base";
/// Nothing that runs needs these; they are half of the size.
const LEFT_OUT: [&str; 8] = [
    "./dev/*",
    "./proc/*",
    "./sys/*",
    "./usr/share/doc/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
];

/// Where the folders are that images are built from.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(workspace::target()?.join("compose"))
}

/// Makes the base image and fills the folders. What is there already stays, and Docker's cache knows it again by its content.
pub(super) fn prepare(binaries: &Path) -> Result<()> {
    import_base(&setup::debian_base(suite())?)?;
    let library = setup::onnxruntime()?;
    let worker = context("worker")?;
    copy(&library, &worker.join("libonnxruntime.so"))?;
    strip(binaries, &worker, "millrace-worker")?;
    strip(binaries, &context("millrace")?, "millrace")
}

/// Removes images that a build has just replaced: they would fill the disk.
pub(super) fn remove_replaced() -> Result<()> {
    docker(&["image", "prune", "--force", "--filter", "label=millrace=debian"]).map(drop)
}

/// Binaries built here run on the same Debian; those of other systems need one that is not older than they are.
fn suite() -> &'static str {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let is_bookworm = release.lines().any(|line| line == "VERSION_CODENAME=bookworm");
    if is_bookworm { "bookworm" } else { "trixie" }
}

fn import_base(root: &Path) -> Result<()> {
    // Changes with every installation, and only then.
    let status = root.join("var/lib/dpkg/status");
    let made = fs::metadata(&status).with_context(|| status.display().to_string())?.mtime().to_string();
    let format = "{{index .Config.Labels \"millrace.made\"}}";
    if docker(&["image", "inspect", "--format", format, BASE]).is_ok_and(|found| found.trim() == made) {
        return Ok(());
    }
    let mut tar = Command::new("tar")
        .arg("--create")
        .arg("--numeric-owner")
        .args(LEFT_OUT.map(|path| format!("--exclude={path}")))
        .arg("--directory")
        .arg(root)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run tar")?;
    let archive = tar.stdout.take().context("tar has an output")?;
    let imported = quiet(
        Command::new("docker")
            .args(["import", "--change", "LABEL millrace=debian", "--change"])
            .arg(format!("LABEL millrace.made={made}"))
            .args(["-", BASE])
            .stdin(archive),
    );
    ensure!(tar.wait()?.success(), "tar could not read all of {}", root.display());
    imported.map(drop)
}

/// The folder an image is built from, with its Dockerfile.
fn context(image: &str) -> Result<PathBuf> {
    let folder = folder()?.join(image);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let dockerfile = workspace::root().join("compose/debian").join(format!("Dockerfile.{image}"));
    copy(&dockerfile, &folder.join("Dockerfile"))?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Line tables are two thirds of a release binary. `strip` is there wherever Rust can link.
fn strip(binaries: &Path, folder: &Path, name: &str) -> Result<()> {
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg("-o").arg(folder.join(name)).arg(binaries.join(name));
    quiet(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_gets_the_pinned_library() {
        let read = |path: &str| fs::read_to_string(workspace::root().join(path)).unwrap();
        let requirements = read("compose/onnxruntime.txt");
        assert!(requirements.contains(&format!("\nonnxruntime=={} ", setup::ONNXRUNTIME_VERSION)));
        let source = read("tests/harness/src/setup/onnxruntime.rs");
        let pins: Vec<&str> =
            source.split("sha256: \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(pins.len(), 2);
        for pin in pins {
            assert!(requirements.contains(&format!("--hash=sha256:{pin}")), "{pin}");
        }
    }
}
