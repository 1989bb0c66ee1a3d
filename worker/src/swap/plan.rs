//! Which versions to load and which to let go, by what is loaded and what the repository holds. Plain code.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::config::VersionPolicy;
use crate::model::repository::{Print, Prints};

/// The files that a version is loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    config: Print,
    version: Print,
}

/// What is loaded of one model, and what could not be.
#[derive(Debug, Default)]
pub struct Standing {
    loaded: BTreeMap<u64, Origin>,
    failed: BTreeMap<u64, Origin>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// All is as it should be.
    Nothing,
    /// The repository holds no version any more that could be served: what is loaded stays.
    NoVersion,
    /// Versions change.
    Change {
        /// To be loaded, whether in the place of one that is loaded or not.
        load: BTreeSet<u64>,
        /// To go, once the others are loaded.
        leave: BTreeSet<u64>,
    },
}

/// What a version that cannot be loaded means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It is as if it were not there.
    Version,
    /// It is loaded, with another configuration: the new one cannot be right, and nothing of it shall hold.
    Configuration,
}

impl Standing {
    /// These versions are loaded, from files of these prints.
    pub fn of(prints: &Prints, versions: impl IntoIterator<Item = u64>) -> Self {
        let loaded = versions.into_iter().map(|version| (version, origin(prints, version)));
        Self { loaded: loaded.collect(), failed: BTreeMap::new() }
    }

    /// A version that has failed is tried again when its files change. Until then it is not there, unless it is loaded from its
    /// former files, which stays so.
    pub fn plan(&self, prints: &Prints, policy: &VersionPolicy) -> Plan {
        let has_failed = |version: u64| self.failed.get(&version) == Some(&origin(prints, version));
        let versions = prints.versions.keys().copied();
        let usable = versions.filter(|version| !has_failed(*version) || self.loaded.contains_key(version));
        let chosen = policy.choose(&usable.collect());
        if chosen.is_empty() {
            return Plan::NoVersion;
        }
        let is_new = |version: &u64| self.loaded.get(version) != Some(&origin(prints, *version));
        let load: BTreeSet<u64> =
            chosen.iter().copied().filter(|version| !has_failed(*version) && is_new(version)).collect();
        let leave: BTreeSet<u64> =
            self.loaded.keys().copied().filter(|version| !chosen.contains(version)).collect();
        if load.is_empty() && leave.is_empty() { Plan::Nothing } else { Plan::Change { load, leave } }
    }

    /// A version cannot be loaded from files of these prints.
    pub fn fail(&mut self, prints: &Prints, version: u64) -> Blame {
        let is_reconfigured = self.loaded.get(&version).is_some_and(|loaded| loaded.config != prints.config);
        self.failed.insert(version, origin(prints, version));
        if is_reconfigured { Blame::Configuration } else { Blame::Version }
    }

    /// A plan for these prints has been carried out.
    pub fn changed(&mut self, prints: &Prints, load: &BTreeSet<u64>, leave: &BTreeSet<u64>) {
        self.loaded.retain(|version, _| !leave.contains(version));
        self.loaded.extend(load.iter().map(|&version| (version, origin(prints, version))));
        self.failed.retain(|version, _| prints.versions.contains_key(version) && !load.contains(version));
    }
}

fn origin(prints: &Prints, version: u64) -> Origin {
    let of_version = prints.versions.get(&version).cloned().unwrap_or_default();
    Origin { config: prints.config.clone(), version: of_version }
}

#[cfg(test)]
mod tests;
