//! The ONNX project's own test cases, one folder a case: an independent judge of our tensors and of the back end.

use std::path::PathBuf;

use super::wheel::Wheel;
use super::{SetupError, cache_dir, lock};

// The cases are data, the same in the wheel of every platform.
const WHEEL: Wheel = Wheel {
    project: "onnx",
    version: "1.21.0",
    file: "onnx-1.21.0-cp312-abi3-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256: "a9261bd580fb8548c9c37b3c6750387eb8f21ea43c63880d37b2c622e1684285",
};
const CASES: &str = "onnx/backend/test/data/node/";

/// Directory of the backend node cases: `<case>/model.onnx`, `<case>/test_data_set_<n>/{input,output}_<n>.pb`.
///
/// # Errors
/// Whatever the download meets.
pub fn onnx_node_tests() -> Result<PathBuf, SetupError> {
    let dir = cache_dir()?.join(format!("onnx-node-tests-{}", WHEEL.version));
    if dir.is_dir() {
        return Ok(dir);
    }
    let _alone = lock()?;
    if !dir.is_dir() {
        WHEEL.unpack(&dir, |name| name.strip_prefix(CASES).filter(|rest| !rest.is_empty()))?;
    }
    Ok(dir)
}
