//! Model repositories: the directories a worker loads models from.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::onnx::{Message, ModelProto};

const MODEL_FILE: &str = "model.onnx";

/// Writes `<repository>/<name>/<version>/model.onnx` and returns its path.
///
/// The version appears, or is replaced, in one rename, so a worker that watches the repository never loads
/// half a file. Write the model's config first ([`write_config`]) if it is to apply to that first load.
///
/// # Errors
/// If the file system refuses.
pub fn write(repository: &Path, name: &str, version: u64, model: &ModelProto) -> Result<PathBuf> {
    let version_dir = repository.join(name).join(version.to_string());
    publish(&version_dir, &model.encode_to_vec())
        .with_context(|| format!("writing {}", version_dir.display()))?;
    Ok(version_dir.join(MODEL_FILE))
}

fn publish(version_dir: &Path, model: &[u8]) -> io::Result<()> {
    // Its name is no number, so no reader takes it for a version.
    let staging_dir = version_dir.with_extension("partial");
    let staged_model = staging_dir.join(MODEL_FILE);
    fs::create_dir_all(&staging_dir)?;
    fs::write(&staged_model, model)?;
    if version_dir.exists() {
        fs::rename(staged_model, version_dir.join(MODEL_FILE))?;
        fs::remove_dir(staging_dir)
    } else {
        fs::rename(staging_dir, version_dir)
    }
}

/// Writes `<repository>/<name>/config.toml` and returns its path.
///
/// # Errors
/// If the file system refuses.
pub fn write_config(repository: &Path, name: &str, toml: &str) -> Result<PathBuf> {
    let model_dir = repository.join(name);
    let file = model_dir.join("config.toml");
    fs::create_dir_all(&model_dir)
        .and_then(|()| fs::write(&file, toml))
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::scale;

    #[test]
    fn versions_are_written_and_replaced() {
        let repository = tempfile::tempdir().unwrap();
        write_config(repository.path(), "scale", "max_batch_size = 8\n").unwrap();
        write(repository.path(), "scale", 1, &scale(2.0)).unwrap();
        let replaced = write(repository.path(), "scale", 1, &scale(3.0)).unwrap();

        let model_dir = repository.path().join("scale");
        assert_eq!(replaced, model_dir.join("1").join("model.onnx"));
        assert_eq!(fs::read(replaced).unwrap(), scale(3.0).encode_to_vec());
        assert_eq!(fs::read_to_string(model_dir.join("config.toml")).unwrap(), "max_batch_size = 8\n");
        assert_eq!(fs::read_dir(model_dir).unwrap().count(), 2, "staging left behind");
    }
}
