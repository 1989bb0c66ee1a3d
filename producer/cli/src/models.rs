//! `millrace models`

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use comfy_table::{Table, presets};
use millrace_common::fleet::{ANNOUNCE_EVERY, Fleet, TensorSpec};
use serde::Serialize;

use crate::exit::Exit;
use crate::global::Global;
use crate::output;
use crate::tally::thousands;

/// How a worker is had.
pub(crate) const NOBODY: &str = "start one with `millrace-worker` (see its --help), or `cargo xtask up` for a broker and two \
                                 workers on this machine";

/// List the models that workers serve now
///
/// Workers announce themselves every second; this listens for two and a half.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Shapes: -1 is any size, mostly the batch. `rows/s` is what the fleet served in the last second or so.

Examples:
  millrace models
  millrace models --json | jq -r '.[].model'

Exit codes: 0, 1 no worker is alive, 2 wrong usage or configuration, 3 no broker.";

pub(crate) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let client = global.connect().await?;
    let before = client.fleet().await;
    tokio::time::sleep(ANNOUNCE_EVERY + Duration::from_millis(200)).await;
    let now = client.fleet().await;
    client.close().await;
    let models = gather(&before, &now);
    if arguments.json {
        output::print(&serde_json::to_string_pretty(&models)?)?;
    } else if !models.is_empty() {
        output::print(&table(&models).to_string())?;
    }
    for worker in now.workers() {
        for problem in &worker.problems {
            eprintln!("worker {}: {problem}", worker.worker);
        }
    }
    if now.workers().next().is_none() {
        eprintln!("no worker is alive: {NOBODY}");
        return Ok(Exit::Failed);
    }
    Ok(Exit::Success)
}

/// One version of a model, over the whole fleet.
#[derive(Debug, Serialize)]
struct Model {
    model: String,
    version: u64,
    /// Runs the requests that pin no version.
    is_default: bool,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    max_batch_size: u32,
    workers: Vec<String>,
    /// Execution providers of all instances.
    instances: Vec<String>,
    /// Served since the workers started.
    rows: u64,
    rows_per_second: Option<u64>,
}

fn gather(before: &Fleet, now: &Fleet) -> Vec<Model> {
    let mut models = BTreeMap::<(String, u64), Model>::new();
    for worker in now.workers() {
        for served in &worker.models {
            let model = models.entry((served.name.clone(), served.version)).or_insert_with(|| Model {
                model: served.name.clone(),
                version: served.version,
                is_default: false,
                inputs: served.inputs.clone(),
                outputs: served.outputs.clone(),
                max_batch_size: served.max_batch_size,
                workers: Vec::new(),
                instances: Vec::new(),
                rows: 0,
                rows_per_second: None,
            });
            model.is_default |= served.is_default;
            model.rows += served.rows;
            let draining = if worker.is_ready { "" } else { " (draining)" };
            let broken = match served.breaker.as_str() {
                "" | "closed" => String::new(),
                state => format!(" (circuit breaker {state})"),
            };
            model.workers.push(format!("{}{draining}{broken}", worker.worker));
            model.instances.extend(served.instances.iter().cloned());
            if let Some(rate) = rate(before, now, &worker.worker, &served.name, served.version) {
                *model.rows_per_second.get_or_insert(0) += rate;
            }
        }
    }
    models.into_values().collect()
}

/// By the worker's own clock and count.
fn rate(before: &Fleet, now: &Fleet, worker: &str, model: &str, version: u64) -> Option<u64> {
    let seen = |fleet: &Fleet| {
        let status = fleet.workers().find(|status| status.worker == worker)?;
        let served = status.models.iter().find(|served| served.name == model && served.version == version)?;
        Some((status.now_ms, served.rows))
    };
    let ((then, rows_then), (now, rows_now)) = (seen(before)?, seen(now)?);
    let ms = now.checked_sub(then).filter(|&ms| ms > 0)?;
    Some(rows_now.checked_sub(rows_then)? * 1000 / ms)
}

fn table(models: &[Model]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "model",
        "version",
        "inputs",
        "outputs",
        "max batch",
        "instances",
        "rows/s",
        "workers",
    ]);
    for model in models {
        table.add_row([
            model.model.clone(),
            format!("{}{}", model.version, if model.is_default { " (default)" } else { "" }),
            specs(&model.inputs),
            specs(&model.outputs),
            model.max_batch_size.to_string(),
            counted(&model.instances),
            model.rows_per_second.map_or_else(|| "-".to_owned(), thousands),
            model.workers.join("\n"),
        ]);
    }
    table
}

/// `2 cpu, 1 cuda`.
fn counted(instances: &[String]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for instance in instances {
        *counts.entry(instance).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    parts.join(", ")
}

fn specs(specs: &[TensorSpec]) -> String {
    let spec = |spec: &TensorSpec| {
        let datatype = spec.datatype.map_or("?", millrace_producer::Datatype::as_str);
        let shape: Vec<String> = spec.shape.iter().map(ToString::to_string).collect();
        format!("{}:{datatype}[{}]", spec.name, shape.join(","))
    };
    specs.iter().map(spec).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn fleet(workers: &[(&str, u64, u64)]) -> Fleet {
        let mut fleet = Fleet::default();
        for (worker, now_ms, rows) in workers {
            let status = serde_json::json!({
                "format": 1, "worker": worker, "started_ms": 0, "now_ms": now_ms, "is_ready": true, "build": "",
                "lanes": [], "models": [{
                    "name": "digits", "version": 1, "is_default": true, "max_batch_size": 64, "is_batched": true,
                    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}], "outputs": [],
                    "instances": ["cpu"], "rows": rows, "batches": 1, "busy_us": 1,
                }],
            });
            fleet.hear(status.to_string().as_bytes(), Instant::now());
        }
        fleet
    }

    #[test]
    fn workers_of_one_model_are_one_row() {
        let before = fleet(&[("a", 1_000, 100), ("b", 1_000, 0)]);
        let now = fleet(&[("a", 3_000, 300), ("b", 2_000, 50), ("c", 9, 9)]);
        let models = gather(&before, &now);
        assert_eq!(models.len(), 1);
        assert_eq!((models[0].rows_per_second, models[0].rows), (Some(150), 359));
        assert_eq!(models[0].workers, ["a", "b", "c"]);
        let text = table(&models).to_string();
        assert!(text.contains("image:FP32[-1,64]") && text.contains("3 cpu"), "{text}");
    }
}
