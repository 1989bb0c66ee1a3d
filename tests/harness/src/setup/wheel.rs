//! A pinned Python wheel as a source of native files: fetched with pip, or from the package index itself where there is
//! no pip (a fresh Debian has none), checked against its SHA-256, and partly unpacked.

use std::fs::{self, File};
use std::io::{self, Cursor};
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::{SetupError, index, run, say, unfinished};

pub(super) struct Wheel {
    pub(super) project: &'static str,
    pub(super) version: &'static str,
    /// Ends in `-<python tag>-<abi tag>-<platform tags joined by dots>.whl`.
    pub(super) file: &'static str,
    pub(super) sha256: &'static str,
}

impl Wheel {
    /// Unpacks the members for which `select` gives a path relative to `dir`; `dir` appears complete or not at all.
    pub(super) fn unpack<'a>(
        &self,
        dir: &Path,
        select: impl for<'n> Fn(&'n str) -> Option<&'n str> + 'a,
    ) -> Result<(), SetupError> {
        let bytes = self.fetch()?;
        let unfinished = unfinished(dir)?;
        let mut found = false;
        let archive_error = |source| SetupError::Archive { file: self.file, source };
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(archive_error)?;
        for index in 0..archive.len() {
            let mut member = archive.by_index(index).map_err(archive_error)?;
            let name = member.name().map_err(archive_error)?.into_owned();
            let Some(relative) = select(&name).filter(|_| member.is_file()) else {
                continue;
            };
            let path = unfinished.join(relative);
            let parent = path.parent().unwrap_or(&unfinished);
            fs::create_dir_all(parent).map_err(SetupError::io("create", parent))?;
            let mut file = File::create(&path).map_err(SetupError::io("create", &path))?;
            io::copy(&mut member, &mut file).map_err(SetupError::io("write", &path))?;
            found = true;
        }
        if !found {
            return Err(SetupError::MemberMissing {
                file: self.file,
                member: format!("file for {}", dir.display()),
            });
        }
        fs::rename(&unfinished, dir).map_err(SetupError::io("rename", &unfinished))
    }

    fn fetch(&self) -> Result<Vec<u8>, SetupError> {
        // pip first: it knows the user's index, proxy, credentials and certificates, however they are configured.
        let pip = match self.fetch_with_pip() {
            Ok(bytes) => return self.checked(bytes),
            Err(error) => error,
        };
        match index::fetch(&index::base_url(), self.project, self.file) {
            Ok(bytes) => self.checked(bytes),
            Err(https) => Err(SetupError::Download { file: self.file, pip, https: format!("{https:#}") }),
        }
    }

    fn fetch_with_pip(&self) -> Result<Vec<u8>, String> {
        let has_pip = Command::new("python3")
            .args(["-m", "pip", "--version"])
            .output()
            .is_ok_and(|output| output.status.success());
        if !has_pip {
            return Err("python3 has no pip here".into());
        }
        say(&format!("pip download {} {}", self.project, self.version));
        self.pip_download().map_err(|error| error.to_string())
    }

    fn pip_download(&self) -> Result<Vec<u8>, SetupError> {
        let dir = tempfile::tempdir().map_err(SetupError::io("create", &std::env::temp_dir()))?;
        let requirements = dir.path().join("requirements.txt");
        let pin = format!("{}=={} --hash=sha256:{}\n", self.project, self.version, self.sha256);
        fs::write(&requirements, pin).map_err(SetupError::io("write", &requirements))?;
        let mut command = Command::new("python3");
        command
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--require-hashes", "--implementation", "cp"])
            .args(self.tags())
            .arg("--requirement")
            .arg(&requirements)
            .arg("--dest")
            .arg(dir.path());
        run(&mut command, "pip-download.log")?;
        let file = dir.path().join(self.file);
        fs::read(&file).map_err(SetupError::io("read", &file))
    }

    /// The wheel's own tags as pip options: this machine's Python need not match, only files are wanted.
    fn tags(&self) -> Vec<String> {
        let mut parts = self.file.trim_end_matches(".whl").rsplit('-');
        let platforms = parts.next().unwrap_or_default();
        let abi = parts.next().unwrap_or_default();
        let python = parts.next().unwrap_or_default().trim_start_matches(['c', 'p', 'y']);
        let mut tags = vec![format!("--python-version={python}"), format!("--abi={abi}")];
        tags.extend(platforms.split('.').map(|tag| format!("--platform={tag}")));
        tags
    }

    fn checked(&self, bytes: Vec<u8>) -> Result<Vec<u8>, SetupError> {
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if found == self.sha256 {
            return Ok(bytes);
        }
        Err(SetupError::Checksum { file: self.file, found, pinned: self.sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHEEL: Wheel = Wheel {
        project: "thing",
        version: "1.0",
        file: "thing-1.0-cp312-abi3-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };

    #[test]
    fn tags_come_from_the_file_name() {
        assert_eq!(
            WHEEL.tags(),
            [
                "--python-version=312",
                "--abi=abi3",
                "--platform=manylinux_2_27_x86_64",
                "--platform=manylinux_2_28_x86_64",
            ]
        );
    }

    #[test]
    fn an_altered_file_is_refused() {
        assert_eq!(WHEEL.checked(b"abc".to_vec()).unwrap(), b"abc");
        let error = WHEEL.checked(b"abd".to_vec()).unwrap_err();
        assert!(matches!(error, SetupError::Checksum { .. }), "{error}");
    }
}
