//! The model repository: folders to names and versions.
//!
//! `<repository>/<model>/<version>/model.onnx`. A name in a request is looked up in a map built from what is here, and never
//! joined to a path.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::TierSettings;
use millrace_common::tier::check_name;
use tracing::warn;

use super::config::ModelConfig;

/// Which files these are, without reading them: names, sizes, times, and their places on the disk. One that is written or replaced
/// changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Print(pub(crate) Vec<(PathBuf, [u64; 5])>);

/// A model's files at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prints {
    /// Its `config.toml` and the default answers beside it.
    pub config: Print,
    /// Everything in the version's folder, hidden files left out: where weights lie beside `model.onnx`, these too.
    pub versions: BTreeMap<u64, Print>,
}

/// A model's folder at one moment.
#[derive(Debug)]
pub struct Folder {
    /// Which files it holds.
    pub prints: Prints,
    /// Its own configuration.
    pub config: Result<ModelConfig, RepositoryError>,
    /// The file of each version, whatever the policy.
    pub files: BTreeMap<u64, PathBuf>,
}

impl Default for Folder {
    /// One that is not there.
    fn default() -> Self {
        Self { prints: Prints::default(), config: Ok(ModelConfig::default()), files: BTreeMap::new() }
    }
}

/// A model that can be served.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its own configuration.
    pub config: ModelConfig,
    /// Which files these are.
    pub prints: Prints,
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

/// Looks at every model of the repository. `serve` narrows it to some; empty means all.
///
/// # Errors
/// When the repository itself cannot be read.
pub fn look(
    repository: &Path,
    serve: &[String],
    tiers: &[TierSettings],
) -> Result<BTreeMap<String, Folder>, RepositoryError> {
    let mut models = BTreeMap::new();
    for (name, path) in folders(repository)? {
        let is_wanted = serve.is_empty() || serve.contains(&name);
        if is_wanted && check_name(&name).is_ok() {
            models.insert(name, look_at(&path, tiers));
        }
    }
    Ok(models)
}

/// Reads the repository, which must be in order. `serve` narrows it to some models; empty means all.
///
/// # Errors
/// [`RepositoryError`].
pub fn scan(
    repository: &Path,
    serve: &[String],
    tiers: &[TierSettings],
) -> Result<BTreeMap<String, Found>, RepositoryError> {
    for (name, path) in folders(repository)? {
        if let (true, Err(error)) = (serve.is_empty() || serve.contains(&name), check_name(&name)) {
            warn!(folder = %path.display(), %error, "not a model, left alone");
        }
    }
    let mut models = BTreeMap::new();
    for (name, folder) in look(repository, serve, tiers)? {
        let found = served(folder, &repository.join(&name))?;
        models.insert(name, found);
    }
    if let Some(name) = serve.iter().find(|name| !models.contains_key(*name)) {
        return Err(RepositoryError::Missing { name: name.clone(), path: repository.to_owned() });
    }
    if models.is_empty() {
        return Err(RepositoryError::Empty { path: repository.to_owned() });
    }
    Ok(models)
}

fn served(folder: Folder, path: &Path) -> Result<Found, RepositoryError> {
    let config = folder.config?;
    let chosen = config.version_policy.choose(&folder.files.keys().copied().collect());
    if chosen.is_empty() {
        return Err(RepositoryError::NoVersion { path: path.to_owned() });
    }
    let versions = folder.files.into_iter().filter(|(version, _)| chosen.contains(version)).collect();
    Ok(Found { config, prints: folder.prints, versions })
}

fn look_at(path: &Path, tiers: &[TierSettings]) -> Folder {
    let folders = match folders(path) {
        Ok(folders) => folders,
        Err(error) => return Folder { config: Err(error), ..Folder::default() },
    };
    let (mut files, mut prints) = (BTreeMap::new(), Prints::default());
    for (name, folder) in folders {
        // Strictly canonical, so that `1` and `01` cannot both claim to be version 1.
        let version = name.parse::<u64>().ok().filter(|v| *v > 0 && v.to_string() == name);
        let file = folder.join("model.onnx");
        if let Some(version) = version
            && file.is_file()
        {
            prints.versions.insert(version, print(&folder, |_| true));
            files.insert(version, file);
        }
    }
    // Before it is read: what is written meanwhile is another file at the next look.
    let is_config = |name: &str| name == "config.toml" || name.ends_with(".json");
    prints.config = print(path, is_config);
    let config_path = path.join("config.toml");
    let config = read_config(&config_path).and_then(|config| match config.check_tiers(tiers) {
        Ok(()) => Ok(config),
        Err(source) => Err(RepositoryError::Config { path: config_path, source }),
    });
    Folder { prints, config, files }
}

/// Of the files in a folder whose names are `wanted`; links are followed.
fn print(folder: &Path, wanted: impl Fn(&str) -> bool) -> Print {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| !name.starts_with('.') && wanted(name))
    };
    let paths: BTreeSet<PathBuf> = entries.filter(is_wanted).collect();
    let known = paths.into_iter().filter_map(|path| {
        let data = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        let (seconds, nanoseconds) = (data.mtime().cast_unsigned(), data.mtime_nsec().cast_unsigned());
        Some((path, [data.len(), seconds, nanoseconds, data.dev(), data.ino()]))
    });
    Print(known.collect())
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
