//! The worker's memory over requests of ever other shapes: what it keeps must not grow.
//!
//! What is resident wanders with what the allocators keep for later, so the worker also tells what it has allocated and not freed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use millrace_harness::models;
use millrace_harness::process::WorkerProcess;
use millrace_harness::setup;
use millrace_producer::{Client, Datatype, Error, Request, Tensor};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::config;
use crate::plot::{Lines, Scale, Series};
use crate::report::{Figure, Section};
use crate::workload::{Model, Workload};

const PREFIX: &str = "bench-memory";
const TIERS: [&str; 3] = ["premium", "enterprise", "free"];
/// Half an hour where one measurement takes 5 s.
const TIMES: u32 = 360;
/// The part at the beginning in which caches and pools may fill.
const WARM_UP: f64 = 1.0 / 3.0;
/// Means of so many parts of what follows make up the slope: samples of a second say much the same as those next to them.
const PARTS: usize = 20;
/// Points of a minute in the plot.
const A_MINUTE: usize = 6;
const MIB: f64 = 1024.0 * 1024.0;
const IN_FLIGHT: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);
const MOST_ELEMENTS: f64 = 4096.0;

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    if !"memory".contains(&context.options.only) {
        return Ok(None);
    }
    let duration = context.duration() * TIMES;
    eprintln!("memory: {} minutes of mixed shapes", duration.as_secs() / 60);
    let repository = context.scratch()?;
    for datatype in ["FP32", "BYTES"] {
        models::write(repository.path(), datatype, 1, &models::identity(datatype)?)?;
    }
    let mut worker = WorkerProcess::spawn_as(
        "millrace-metered-worker",
        &[],
        &[
            ("MILLRACE_AMQP_URL", &context.broker.amqp_url()),
            ("MILLRACE__TOPOLOGY__PREFIX", PREFIX),
            ("MILLRACE__MODELS__REPOSITORY", &repository.path().display().to_string()),
            (setup::LIBRARY_VARIABLE, &context.library.display().to_string()),
        ],
    )?;
    worker.wait_for_line("ready worker=", Duration::from_secs(60))?;
    let begun = told(&worker.stdout()).last().map_or(0.0, |(at, _)| at);
    let (served, resident) = context.runtime.block_on(load(context, worker.pid(), duration))?;
    let told: Vec<_> = told(&worker.stdout()).map(|(at, bytes)| (at - begun, bytes)).collect();
    worker.terminate();
    worker.wait(Duration::from_secs(30)).context("the worker drains")?;
    let told: Vec<_> = told.into_iter().filter(|&(at, _)| at >= 0.0 && at < duration.as_secs_f64()).collect();
    let allocated = |of: fn([f64; 2]) -> f64| told.iter().map(|&(at, bytes)| (at, of(bytes) / MIB)).collect();
    let curves: [(&str, Vec<(f64, f64)>); 4] = [
        ("resident", resident),
        ("allocated", allocated(|[rust, c]| rust + c)),
        ("of it by the worker", allocated(|[rust, _]| rust)),
        ("of it by ONNX Runtime", allocated(|[_, c]| c)),
    ];
    let mut section = Section::new(Scenario::Memory, context);
    section.table(
        &[
            "minutes",
            "requests",
            "memory",
            "MiB at first",
            "after warm-up",
            "at last",
            "slope after warm-up, MiB an hour (± two standard errors)",
        ],
        curves.iter().map(|(name, points)| row(name, points, served, duration)).collect(),
    );
    let parts = (A_MINUTE * duration.as_secs() as usize / 60).max(2);
    let minutes = |points| means(points, parts).into_iter().map(|(at, mib)| (at / 60.0, mib)).collect();
    let lines = Lines {
        x: "minutes",
        y: "memory (MiB)",
        scale: Scale::Linear,
        series: curves
            .iter()
            .take(2)
            .map(|(name, points)| Series { name: (*name).to_owned(), points: minutes(points) })
            .collect(),
    };
    section.figure(Figure {
        name: "memory".to_owned(),
        caption: "The worker's memory over requests of ever other shapes".to_owned(),
        svg: lines.svg()?,
    });
    Ok(Some(section))
}

/// The first of the points, and the means of the first and the last part of those after the warm-up.
fn row(name: &str, points: &[(f64, f64)], served: u64, duration: Duration) -> Vec<String> {
    let warm: Vec<_> =
        points.iter().copied().filter(|(at, _)| *at >= WARM_UP * duration.as_secs_f64()).collect();
    let parts = means(&warm, PARTS);
    let (slope, error) = slope(&parts);
    let at = |sample: Option<&(f64, f64)>| sample.map_or_else(String::new, |(_, mib)| format!("{mib:.1}"));
    vec![
        format!("{:.1}", duration.as_secs_f64() / 60.0),
        served.to_string(),
        name.to_owned(),
        at(points.first()),
        at(parts.first()),
        at(parts.last()),
        format!("**{:.1}** (± {:.1})", slope * 3600.0, 2.0 * error * 3600.0),
    ]
}

/// What the metered worker has told: seconds, and bytes allocated by Rust and by C.
fn told(stdout: &str) -> impl Iterator<Item = (f64, [f64; 2])> {
    stdout.lines().filter_map(|line| {
        let mut numbers = line.strip_prefix("alive ")?.split(' ').map(str::parse::<f64>);
        Some((numbers.next()?.ok()?, [numbers.next()?.ok()?, numbers.next()?.ok()?]))
    })
}

/// Requests served, and the worker's memory every second: seconds, MiB.
async fn load(context: &Context, worker: u32, duration: Duration) -> Result<(u64, Vec<(f64, f64)>)> {
    let client =
        Client::connect(config(&context.broker.amqp_url(), PREFIX, Workload::of(Model::Tiny))?).await?;
    let mut random = StdRng::seed_from_u64(17);
    let mut open = FuturesUnordered::new();
    let (mut served, mut samples) = (0u64, Vec::new());
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while started.elapsed() < duration {
        while open.len() < IN_FLIGHT {
            let (client, request) = (client.clone(), request(&mut random)?);
            open.push(
                async move {
                    tokio::time::sleep(PAUSE).await;
                    client.infer(request).await
                }
                .boxed(),
            );
        }
        tokio::select! {
            Some(answer) = open.next() => {
                let _: millrace_producer::Response = answer.map_err(|error: Error| anyhow::anyhow!(error))?;
                served += 1;
            }
            _ = ticks.tick() => samples.push((started.elapsed().as_secs_f64(), resident_mib(worker)?)),
        }
    }
    while let Some(answer) = open.next().await {
        answer?;
        served += 1;
    }
    client.close().await;
    Ok((served, samples))
}

fn request(random: &mut StdRng) -> Result<Request> {
    let rows = random.random_range(1..=16usize);
    let columns = MOST_ELEMENTS.powf(random.random::<f64>()) as usize;
    let is_text = random.random_bool(0.25);
    let (model, datatype) = if is_text { ("BYTES", Datatype::Bytes) } else { ("FP32", Datatype::Fp32) };
    let mut data = Vec::new();
    for _ in 0..rows * columns {
        if is_text {
            let length = random.random_range(0..=16u32);
            data.extend_from_slice(&length.to_le_bytes());
            data.extend(std::iter::repeat_n(b'a', length as usize));
        } else {
            data.extend_from_slice(&random.random::<f32>().to_le_bytes());
        }
    }
    let tensor = Tensor::new("x", datatype, vec![rows as i64, columns as i64], Bytes::from(data))?;
    let request = Request::new(model).tier(TIERS[random.random_range(0..TIERS.len())]).input(tensor);
    Ok(if random.random_bool(0.3) { request.json() } else { request })
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// Means of so many parts of the points.
fn means(points: &[(f64, f64)], parts: usize) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(points.len().div_ceil(parts).max(1)).map(mean).collect()
}

/// Of the straight line nearest to the points (least squares), a second, and its standard error.
fn slope(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (mut xy, mut xx) = (0.0, 0.0);
    for point in points {
        xy += (point.0 - x) * (point.1 - y);
        xx += (point.0 - x).powi(2);
    }
    if xx <= 0.0 || count <= 2.0 {
        return (0.0, f64::INFINITY);
    }
    let slope = xy / xx;
    let off = points.iter().map(|point| (point.1 - y - slope * (point.0 - x)).powi(2)).sum::<f64>();
    (slope, (off / (count - 2.0) / xx).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_has_a_slope() {
        let at = |second: u32| f64::from(second);
        let leak: Vec<_> = (0..100).map(|second| (at(second), 50.0 + 0.25 * at(second))).collect();
        let means = means(&leak, PARTS);
        assert_eq!((means.len(), means[0]), (PARTS, (2.0, 50.5)));
        let (found, error) = slope(&means);
        assert!((found - 0.25).abs() < 1e-9 && error < 1e-9);
    }

    #[test]
    fn what_a_worker_tells_is_found_among_other_lines() {
        let lines = told("alive 0.2 10 20\nready\nalive 0.4 11\nalive 0.6 12 22\nalive 0.8 1");
        assert_eq!(lines.collect::<Vec<_>>(), [(0.2, [10.0, 20.0]), (0.6, [12.0, 22.0])]);
    }

    #[test]
    fn what_wanders_has_a_slope_that_may_be_none() {
        let waves: Vec<_> = (0..20).map(|part| (f64::from(part), f64::from(part % 2))).collect();
        let (found, error) = slope(&waves);
        assert!(found.abs() < 2.0 * error, "{found} {error}");
        assert_eq!(slope(&[(0.0, 7.0), (1.0, 7.0)]), (0.0, f64::INFINITY));
    }
}
