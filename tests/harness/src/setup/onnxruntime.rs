//! ONNX Runtime's shared library, out of its pinned Python wheel.

use std::path::PathBuf;

use super::wheel::Wheel;
use super::{SetupError, cache_dir, lock};

pub const ONNXRUNTIME_VERSION: &str = "1.31.1";
/// Names a library to use instead; the worker's configuration reads the same variable.
pub const LIBRARY_VARIABLE: &str = "MILLRACE__ONNXRUNTIME__LIBRARY";

const LIBRARY: &str = "libonnxruntime.so.1.31.1";
// The library does not depend on the Python version, so one wheel per processor is enough.
const X86_64: Wheel = Wheel {
    project: "onnxruntime",
    version: ONNXRUNTIME_VERSION,
    file: "onnxruntime-1.31.1-cp313-cp313-manylinux_2_28_x86_64.whl",
    sha256: "74a6a52994616c4d18b33db1e13c226333a70a6ba07480a5cab9c2a50dff1430",
};
const AARCH64: Wheel = Wheel {
    project: "onnxruntime",
    version: ONNXRUNTIME_VERSION,
    file: "onnxruntime-1.31.1-cp313-cp313-manylinux_2_28_aarch64.whl",
    sha256: "dcaedc50333876f3829ab966b242147f0e548229e29c36fe44622ecf748c25ee",
};

/// Path of `libonnxruntime.so`: the one named by `MILLRACE__ONNXRUNTIME__LIBRARY`, else a downloaded one.
///
/// # Errors
/// [`SetupError::UnknownPlatform`] off Linux x86_64 and aarch64, and whatever the download meets.
pub fn onnxruntime() -> Result<PathBuf, SetupError> {
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(SetupError::OverrideMissing { variable: LIBRARY_VARIABLE, path })
        };
    }
    let dir = cache_dir()?.join(format!("onnxruntime-{ONNXRUNTIME_VERSION}"));
    let library = dir.join(LIBRARY);
    if library.is_file() {
        return Ok(library);
    }
    let _alone = lock()?;
    if !library.is_file() {
        let member = format!("onnxruntime/capi/{LIBRARY}");
        wheel()?.unpack(&dir, |name| (name == member).then_some(LIBRARY))?;
    }
    Ok(library)
}

fn wheel() -> Result<Wheel, SetupError> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok(X86_64),
        ("linux", "aarch64") => Ok(AARCH64),
        (os, arch) => Err(SetupError::UnknownPlatform {
            what: "ONNX Runtime",
            platform: format!("{os} {arch}"),
            remedy: format!("set {LIBRARY_VARIABLE} to a library of version 1.24 or later"),
        }),
    }
}
