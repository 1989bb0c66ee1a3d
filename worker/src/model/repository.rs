//! The model repository: folders to names and versions.
//!
//! `<repository>/<model>/<version>/model.onnx`. Everything is read once, at load; a name in a request is looked up in the
//! map built here and never joined to a path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::TierSettings;
use millrace_common::tier::check_name;
use tracing::warn;

use super::config::{ModelConfig, VersionPolicy};

/// A model found in the repository.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its own configuration.
    pub config: ModelConfig,
    /// The served versions' files.
    pub versions: BTreeMap<u64, PathBuf>,
}

/// Why the repository cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A folder or file that cannot be read.
    #[error(
        "cannot read {path}: {source}; set models.repository to a folder of <model>/<version>/model.onnx"
    )]
    Read {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A model's `config.toml` that is not TOML or has unknown keys.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A value out of bounds in a model's `config.toml`.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Which key, and the remedy.
        source: Invalid,
    },
    /// A model without a version that its policy serves.
    #[error("{path} holds no version to serve: put the model at {path}/1/model.onnx")]
    NoVersion {
        /// The model's folder.
        path: PathBuf,
    },
    /// No model at all.
    #[error("{path} holds no model: put one at {path}/<model>/1/model.onnx")]
    Empty {
        /// The repository.
        path: PathBuf,
    },
    /// A model that is to be served and is not there.
    #[error("models.serve names `{name}`, which is not in {path}")]
    Missing {
        /// The model.
        name: String,
        /// The repository.
        path: PathBuf,
    },
}

/// Reads the repository. `serve` narrows it to some models; empty means all.
///
/// # Errors
/// [`RepositoryError`].
pub fn scan(
    repository: &Path,
    serve: &[String],
    tiers: &[TierSettings],
) -> Result<BTreeMap<String, Found>, RepositoryError> {
    let mut models = BTreeMap::new();
    for (name, path) in folders(repository)? {
        if !serve.is_empty() && !serve.contains(&name) {
            continue;
        }
        if let Err(error) = check_name(&name) {
            warn!(folder = %path.display(), %error, "not a model, left alone");
            continue;
        }
        models.insert(name, read_model(&path, tiers)?);
    }
    if let Some(name) = serve.iter().find(|name| !models.contains_key(*name)) {
        return Err(RepositoryError::Missing { name: name.clone(), path: repository.to_owned() });
    }
    if models.is_empty() {
        return Err(RepositoryError::Empty { path: repository.to_owned() });
    }
    Ok(models)
}

fn read_model(path: &Path, tiers: &[TierSettings]) -> Result<Found, RepositoryError> {
    let config_path = path.join("config.toml");
    let config = read_config(&config_path)?;
    config.check_tiers(tiers).map_err(|source| RepositoryError::Config { path: config_path, source })?;
    let mut versions = BTreeMap::new();
    for (name, folder) in folders(path)? {
        // Strictly canonical, so that `1` and `01` cannot both claim to be version 1.
        let version = name.parse::<u64>().ok().filter(|v| *v > 0 && v.to_string() == name);
        let file = folder.join("model.onnx");
        if let Some(version) = version
            && file.is_file()
        {
            versions.insert(version, file);
        }
    }
    match &config.version_policy {
        VersionPolicy::All {} => {}
        VersionPolicy::Latest { num_versions } => {
            while versions.len() > *num_versions {
                versions.pop_first();
            }
        }
        VersionPolicy::Specific { versions: wanted } => {
            versions.retain(|version, _| wanted.contains(version))
        }
    }
    if versions.is_empty() {
        return Err(RepositoryError::NoVersion { path: path.to_owned() });
    }
    Ok(Found { config, versions })
}

fn read_config(path: &Path) -> Result<ModelConfig, RepositoryError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ModelConfig::default()),
        Err(source) => return Err(RepositoryError::Read { path: path.to_owned(), source }),
    };
    let config: ModelConfig =
        toml::from_str(&text).map_err(|source| RepositoryError::Syntax { path: path.to_owned(), source })?;
    config.validate().map_err(|source| RepositoryError::Config { path: path.to_owned(), source })?;
    Ok(config)
}

fn folders(path: &Path) -> Result<BTreeMap<String, PathBuf>, RepositoryError> {
    let read = |source| RepositoryError::Read { path: path.to_owned(), source };
    let mut folders = BTreeMap::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.path().is_dir()
        {
            folders.insert(name, entry.path());
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, file: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }

    #[test]
    fn the_newest_version_is_served_unless_the_policy_says_otherwise() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "a/1/model.onnx",
            "a/10/model.onnx",
            "a/9/model.onnx",
            "a/02/model.onnx",
            "a/11.partial/model.onnx",
        ] {
            touch(root.path(), file);
        }
        let versions =
            || scan(root.path(), &[], &[]).unwrap()["a"].versions.keys().copied().collect::<Vec<_>>();
        assert_eq!(versions(), [10]);
        std::fs::write(root.path().join("a/config.toml"), "version_policy = { all = {} }").unwrap();
        assert_eq!(versions(), [1, 9, 10]);
        std::fs::write(
            root.path().join("a/config.toml"),
            "version_policy = { specific = { versions = [9] } }",
        )
        .unwrap();
        assert_eq!(versions(), [9]);
    }

    #[test]
    fn what_cannot_be_served_is_an_error_with_a_remedy() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(scan(root.path(), &[], &[]), Err(RepositoryError::Empty { .. })));
        assert!(matches!(scan(&root.path().join("x"), &[], &[]), Err(RepositoryError::Read { .. })));
        std::fs::create_dir(root.path().join("a")).unwrap();
        assert!(matches!(scan(root.path(), &[], &[]), Err(RepositoryError::NoVersion { .. })));
        touch(root.path(), "a/1/model.onnx");
        assert!(matches!(scan(root.path(), &["b".to_owned()], &[]), Err(RepositoryError::Missing { .. })));
        std::fs::write(root.path().join("a/config.toml"), "max_batch_size = 0").unwrap();
        assert!(matches!(scan(root.path(), &[], &[]), Err(RepositoryError::Config { .. })));
        std::fs::write(root.path().join("a/config.toml"), "max_batch = 1").unwrap();
        assert!(matches!(scan(root.path(), &[], &[]), Err(RepositoryError::Syntax { .. })));
    }
}
