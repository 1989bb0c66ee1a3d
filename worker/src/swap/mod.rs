//! Model versions that come, go and change while requests are served.
//!
//! The repository is looked at every `models.poll_seconds`. What differs, and differs in the same way a second later, is loaded and
//! warmed up beside what is served, and takes its place in the catalogue in one step. What has gone from the catalogue runs what
//! it has taken, then its instances end. A model of which anything is wrong stays as it was.

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_common::lifecycle::Lifecycle;
use tracing::{error, info, warn};

use self::plan::{Blame, Plan, Standing};
use crate::catalogue::{ServedVersion, TierCounts};
use crate::load::{Loader, Place, Ready, StartError, check_ladders};
use crate::model::config::ModelConfig;
use crate::model::instance::Around;
use crate::model::instances::Instances;
use crate::model::repository::{Folder, Found, Prints, RepositoryError, look};

/// Before what differs is looked at again. A copy that pauses for longer is taken for whole.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Keeps what is served as the repository says.
pub struct Swapper {
    renewal: Renewal,
    models: BTreeMap<String, Watched>,
    /// Folders that nobody consumes for.
    strangers: BTreeSet<String>,
    is_readable: bool,
}

struct Watched {
    standing: Standing,
    /// As of the last look.
    seen: Prints,
    /// As of the last look that something was made of.
    settled: Option<Prints>,
}

/// What loads versions and lets them go.
struct Renewal {
    loader: Arc<Loader>,
    instances: Arc<Instances>,
    around: Around,
    stop: Lifecycle,
}

impl Swapper {
    /// Over what `found` says is loaded, until `stop` stops.
    pub(crate) fn new(
        loader: Loader,
        found: BTreeMap<String, Found>,
        instances: Arc<Instances>,
        around: Around,
        stop: Lifecycle,
    ) -> Self {
        let models = found.into_iter().map(|(model, found)| {
            let standing = Standing::of(&found.prints, found.versions.into_keys());
            (model, Watched { standing, seen: found.prints, settled: None })
        });
        let renewal = Renewal { loader: Arc::new(loader), instances, around, stop };
        Self { renewal, models: models.collect(), strangers: BTreeSet::new(), is_readable: true }
    }

    /// Looks and changes until it is stopped; a load under way ends at its next step then.
    pub async fn run(mut self) {
        let every = self.renewal.loader.config.models.poll_seconds;
        if every == 0 {
            return;
        }
        let every = Duration::from_secs(every);
        let (stop, mut pause) = (self.renewal.stop.clone(), every);
        loop {
            let loader = Arc::clone(&self.renewal.loader);
            let looked = async {
                tokio::time::sleep(pause).await;
                tokio::task::spawn_blocking(move || look_with(&loader)).await
            };
            // Not waited for when the worker stops: network storage may hold it for minutes.
            let looked = tokio::select! {
                looked = looked => looked,
                () = stop.stopping() => return,
            };
            let Ok(looked) = looked else { return error!("looking at the repository panicked") };
            pause = if self.take(looked).await { SECOND_LOOK.min(every) } else { every };
        }
    }

    /// Returns whether something should be looked at again soon.
    async fn take(&mut self, looked: Result<BTreeMap<String, Folder>, RepositoryError>) -> bool {
        let mut folders = match looked {
            Ok(folders) => folders,
            Err(error) => {
                if std::mem::take(&mut self.is_readable) {
                    error!(%error, "cannot look at the model repository; what is loaded is served on");
                }
                return false;
            }
        };
        self.is_readable = true;
        let mut is_moving = false;
        for (model, watched) in &mut self.models {
            let folder = folders.remove(model).unwrap_or_default();
            let is_still = std::mem::replace(&mut watched.seen, folder.prints.clone()) == folder.prints;
            if watched.settled.as_ref() == Some(&folder.prints) {
                continue;
            }
            is_moving |= !is_still;
            if is_still && !self.renewal.stop.is_stopping() {
                watched.settled = Some(folder.prints.clone());
                let problem = self.renewal.renew(model, &mut watched.standing, folder).await;
                self.renewal.around.catalogue.note_problem(model, problem);
            }
        }
        folders.retain(|_, folder| !folder.files.is_empty());
        for stranger in folders.into_keys().filter(|name| self.strangers.insert(name.clone())) {
            warn!(model = %stranger, "a new model in the repository: restart the worker to serve it; it has no queues here yet");
        }
        is_moving
    }
}

fn look_with(loader: &Loader) -> Result<BTreeMap<String, Folder>, RepositoryError> {
    let config = &loader.config;
    look(&config.models.repository, &config.models.serve, &config.topology.tiers)
}

impl Renewal {
    /// Makes what is served of a model what its folder says; returns what keeps it from that.
    async fn renew(&self, model: &str, standing: &mut Standing, folder: Folder) -> Option<String> {
        let Folder { prints, config, files } = folder;
        let config = match config {
            Ok(config) => Arc::new(config),
            Err(error) => {
                error!(%model, %error, "its configuration is refused, what is loaded is served on as before; correct the file");
                return Some(format!("model `{model}`: {error}"));
            }
        };
        let mut problem = None;
        let mut ready = BTreeMap::new();
        loop {
            let (load, leave) = match standing.plan(&prints, &config.version_policy) {
                Plan::Change { load, leave } => (load, leave),
                Plan::Nothing => return problem,
                Plan::NoVersion => {
                    warn!(%model, "the repository holds no version of it that could be served; what is loaded is served on");
                    return problem
                        .or_else(|| Some(format!("model `{model}`: no version to serve, served on")));
                }
            };
            let Some(version) = load.iter().copied().find(|version| !ready.contains_key(version)) else {
                match self.swap(model, ready, &leave) {
                    Ok(()) => standing.changed(&prints, &load, &leave),
                    Err(error) => {
                        error!(%model, %error, "cannot change its versions; restart the worker");
                        return Some(format!("model `{model}`: {error}; restart the worker"));
                    }
                }
                return problem;
            };
            let error = match self.load(model, version, files[&version].clone(), &config).await {
                Ok(loaded) => {
                    ready.insert(version, loaded);
                    continue;
                }
                Err(StartError::Stopped) => return problem,
                Err(error) => error,
            };
            let blame = standing.fail(&prints, version);
            let remedy = match blame {
                Blame::Version => "the other versions are served; replace its files, or remove its folder",
                Blame::Configuration => "all of the model's versions stay as they were; correct config.toml",
            };
            error!(path = %files[&version].display(), %error, remedy, "cannot serve what the repository holds");
            problem = Some(format!("{error}; {remedy}"));
            if blame == Blame::Configuration {
                return problem;
            }
        }
    }

    async fn load(
        &self,
        model: &str,
        version: u64,
        file: PathBuf,
        config: &Arc<ModelConfig>,
    ) -> Result<Ready, StartError> {
        let (loader, stop, config) = (Arc::clone(&self.loader), self.stop.clone(), Arc::clone(config));
        let tiers = loader.config.topology.tiers.len();
        let counts = self.around.catalogue.counts(model).unwrap_or_else(|| Arc::new(TierCounts::new(tiers)));
        let model = model.to_owned();
        let loading = tokio::task::spawn_blocking(move || {
            let place = Place { loader: &loader, model: &model, version, counts: &counts, stop: &stop };
            place.load(&file, &config)
        });
        loading.await.unwrap_or_else(|panic| Err(StartError::Thread(std::io::Error::other(panic))))
    }

    /// From one moment to the next: who was found before runs where it was found.
    fn swap(
        &self,
        model: &str,
        ready: BTreeMap<u64, Ready>,
        leave: &BTreeSet<u64>,
    ) -> Result<(), std::io::Error> {
        let catalogue = &self.around.catalogue;
        let mut entering: Vec<Arc<ServedVersion>> = Vec::new();
        for Ready { served, backends } in ready.into_values() {
            let started = self.instances.start(&served, backends, &self.around);
            match started {
                Ok(true) => entering.push(served),
                Ok(false) => return Ok(()),
                Err(error) => {
                    entering.iter().for_each(|served| served.pickup.finish());
                    return Err(error);
                }
            }
        }
        let before = catalogue.find(model, None);
        let gone = catalogue.change(model, entering, leave);
        self.around.live.refresh();
        gone.iter().for_each(|served| served.pickup.finish());
        let gone: Vec<u64> = gone.iter().map(|served| served.version).collect();
        let versions: Vec<u64> = catalogue.versions(model).iter().map(|served| served.version).collect();
        info!(%model, ?versions, ?gone, "versions changed");
        if let (Some(before), Some(now)) = (before, catalogue.find(model, None)) {
            tell_difference(&before, &now);
        }
        check_ladders(catalogue, model);
        Ok(())
    }
}

/// Requests that fitted the former version may be refused by the one that serves them now.
fn tell_difference(before: &ServedVersion, now: &ServedVersion) {
    let (was, is) = (before.rules.signature.to_string(), now.rules.signature.to_string());
    if was != is {
        warn!(model = %now.model, version = now.version, %was, %is, "inputs or outputs changed");
    }
}
