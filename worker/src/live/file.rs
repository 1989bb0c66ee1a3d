//! The configuration file, watched: what may change while the worker runs is taken over, and a change of anything else is refused whole.
//!
//! It is read, not watched by inotify: a Kubernetes ConfigMap changes by a symbolic link two folders up, and network file systems say
//! nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::{error, info, warn};

use super::{Live, Tunables};
use crate::config::Config;

/// Between two looks. What differs is taken once two looks in turn find the same, so that no half of it is.
const EVERY: Duration = Duration::from_millis(500);

/// Watches a file, for ever. `running` is what the worker was started with; the file may say something else by now.
pub async fn watch(file: PathBuf, running: Arc<Config>, live: Arc<Live>) {
    let mut watched = Watched::default();
    let mut held = Tunables::of(&running);
    loop {
        let (path, config) = (file.clone(), Arc::clone(&running));
        let looking = tokio::task::spawn_blocking(move || {
            let found = watched.look(std::fs::read(&path).ok(), || changed(&config, &path));
            (watched, found)
        });
        let Ok((again, found)) = looking.await else {
            return error!("looking at the configuration file panicked");
        };
        watched = again;
        match found {
            Some(Found::Changed(tunables)) if tunables != held => {
                info!(file = %file.display(), "the changed configuration holds");
                live.configure(tunables.clone());
                held = tunables;
            }
            Some(Found::Refused(reason)) => {
                error!(file = %file.display(), reason, "the changed configuration is refused, all of it, and the former one holds");
            }
            Some(Found::Gone) => {
                warn!(file = %file.display(), "the configuration file cannot be read; what was read holds");
            }
            Some(Found::Changed(_)) | None => {}
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What was seen of a file.
#[derive(Debug, Default)]
struct Watched {
    seen: Option<Vec<u8>>,
    settled: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq)]
enum Found {
    Changed(Tunables),
    Refused(String),
    Gone,
}

impl Watched {
    /// What the content of now comes to, if it is another than that of before.
    fn look(
        &mut self,
        content: Option<Vec<u8>>,
        changed: impl FnOnce() -> Result<Tunables, String>,
    ) -> Option<Found> {
        let is_still = self.seen == content;
        self.seen = content;
        if !is_still || self.seen == self.settled {
            return None;
        }
        self.settled.clone_from(&self.seen);
        Some(match (&self.seen, self.seen.as_ref().map(|_| changed())) {
            (_, Some(Ok(tunables))) => Found::Changed(tunables),
            (_, Some(Err(reason))) => Found::Refused(reason),
            (_, None) => Found::Gone,
        })
    }
}

/// What the file says now of what may change.
///
/// # Errors
/// Why nothing of it counts: it is no configuration, or says something else of what is for the start.
fn changed(running: &Config, file: &Path) -> Result<Tunables, String> {
    let mut new = Config::read(Some(file)).map_err(|error| error.to_string())?;
    if new.worker.name.is_empty() {
        new.worker.name.clone_from(&running.worker.name);
    }
    let mut keys = Vec::new();
    if running.broker.addresses != new.broker.addresses {
        // Their text does not tell passwords apart.
        keys.push("broker.addresses".to_owned());
    }
    let value = |config: &Config| serde_json::to_value(config).map_err(|error| error.to_string());
    differences("", &value(running)?, &value(&new)?, &mut keys);
    keys.retain(|key| !may_change(key));
    keys.dedup();
    match keys.as_slice() {
        [] => Ok(Tunables::of(&new)),
        keys => Err(format!("restart the worker to change {}", keys.join(", "))),
    }
}

fn may_change(key: &str) -> bool {
    let of_tier =
        key.strip_prefix("topology.tiers[").and_then(|rest| rest.split_once("].")).map(|(_, of)| of);
    key == "logs.filter" || key.starts_with("features.") || matches!(of_tier, Some("weight" | "max_share"))
}

/// The keys whose values differ, in order.
fn differences(key: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                differences(&key, value, after.get(name).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                differences(&format!("{key}[{index}]"), before, after, found);
            }
        }
        (before, after) if before == after => {}
        _ => found.push(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIERS: &str = "[[topology.tiers]]\nname = \"premium\"\nweight = 8\nmax_length = 10\nmax_length_bytes = 1048576\n\
                         default_budget_ms = 1000\n";

    fn against(before: &str, after: &str) -> Result<Tunables, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker.toml");
        let write =
            |text: &str| std::fs::write(&file, format!("onnxruntime.library = \"x\"\n{text}")).unwrap();
        write(before);
        let running = Config::load(Some(&file)).unwrap();
        write(after);
        changed(&running, &file)
    }

    #[test]
    fn what_may_change_is_taken_and_all_else_named() {
        let after = TIERS.replace("weight = 8", "weight = 2\nmax_share = 0.5");
        let tunables =
            against(TIERS, &format!("features.access_log = true\nlogs.filter = \"warn\"\n{after}")).unwrap();
        assert_eq!((tunables.weights, tunables.max_shares), (vec![2], vec![0.5]));
        assert!(tunables.features.access_log && tunables.features.packing && tunables.log_filter == "warn");

        let refused = |after: &str, parts: &[&str]| {
            let error = against(TIERS, after).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        };
        refused(
            &format!("worker.grace_seconds = 3\nlimits.max_elements = 7\n{after}"),
            &["worker.grace_seconds", "limits.max_elements"],
        );
        refused(&TIERS.replace("premium", "paying"), &["topology.tiers[0].name"]);
        refused("", &["topology.tiers"]);
        refused(&TIERS.replace("weight = 8", "weight = 0"), &["weight", "from 1 to 10000"]);
        refused(&format!("features.cash = false\n{TIERS}"), &["cash"]);
        refused("half of a li", &["configuration"]);
        let broker = "broker.addresses = [\"amqp://ann:s3cret@broker:5672/%2f\"]\n";
        let error =
            against(&format!("{broker}{TIERS}"), &format!("{}{TIERS}", broker.replace("s3cret", "s3cret2")))
                .unwrap_err();
        assert!(error.contains("broker.addresses") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn content_counts_once_it_has_been_the_same_twice() {
        let tunables = || against(TIERS, TIERS);
        let mut watched = Watched::default();
        let mut look = |content: &str| watched.look((!content.is_empty()).then(|| content.into()), tunables);
        assert_eq!(
            (look("a"), look("a")),
            (None, Some(Found::Changed(tunables().unwrap()))),
            "whatever it was at the start"
        );
        assert_eq!((look("a"), look("ab"), look("abc")), (None, None, None));
        assert_eq!((look("abc"), look("abc")), (Some(Found::Changed(tunables().unwrap())), None));
        assert_eq!((look(""), look(""), look("")), (None, Some(Found::Gone), None));
        assert_eq!((look("abc"), look("abc")), (None, Some(Found::Changed(tunables().unwrap()))));
    }
}
