//! Python's usual AMQP client, as a folder for `PYTHONPATH`: what README shows is run with it.

use std::path::PathBuf;

use super::wheel::Wheel;
use super::{SetupError, cache_dir, lock};

const WHEEL: Wheel = Wheel {
    project: "pika",
    version: "1.3.2",
    file: "pika-1.3.2-py3-none-any.whl",
    sha256: "0779a7c1fafd805672796085560d290213a465e4f6f76a6fb19e378d8041a14f",
};

/// A folder that holds the package `pika`.
///
/// # Errors
/// Whatever the download meets.
pub fn pika() -> Result<PathBuf, SetupError> {
    let dir = cache_dir()?.join(format!("pika-{}", WHEEL.version));
    if dir.is_dir() {
        return Ok(dir);
    }
    let _alone = lock()?;
    if !dir.is_dir() {
        WHEEL.unpack(&dir, |name| Some(name).filter(|name| name.starts_with("pika/")))?;
    }
    Ok(dir)
}
