//! `cargo xtask fuzz`

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use comfy_table::Table;
use serde_json::Value;

use crate::workspace;

/// Feed hostile bytes to whatever reads bytes, guided by coverage
///
/// Builds the targets of tests/fuzz for libFuzzer, whose source comes with the crate bolero; a C++ compiler must be there, a
/// nightly toolchain need not. Runs one after the other, from the seeds in tests/fuzz/corpus and what earlier runs have found,
/// which stays in target/fuzz. Prints for each what was executed, how many inputs reach something of their own, and the most
/// memory that reading one took. An input that fails is kept: its path is printed, and how to run it again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask fuzz                                every target, 10 minutes each\n  cargo xtask fuzz \
                  json bundle --seconds 60        two of them, a minute each\n  cargo xtask fuzz json --replay FILE             \
                  an input that failed, with its backtrace\n\nMend what fails, and keep the input: copy it to \
                  tests/fuzz/corpus/TARGET, where every `cargo xtask test` runs it."
)]
pub(crate) struct Arguments {
    /// Targets, the folders of tests/fuzz/corpus; all of them if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Run this input once instead, of one target
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Longest input in bytes
    #[arg(long, default_value_t = 65_536)]
    max_bytes: u32,
}

/// What makes rustc instrument for libFuzzer, and bolero use it. All are options of the stable compiler.
const FLAGS: [&str; 8] = [
    "--cfg fuzzing",
    "--cfg fuzzing_libfuzzer",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cforce-frame-pointers=yes",
];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let seeds = workspace::root().join("tests/fuzz/corpus");
    let known = names(&seeds)?;
    let unknown = arguments.targets.iter().find(|target| !known.contains(target));
    if let Some(unknown) = unknown {
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    let targets = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    let fuzzer = Fuzzer { folder: workspace::target()?.join("fuzz"), program: build()? };
    if let Some(input) = &arguments.replay {
        let [target] = &targets[..] else { bail!("name the one target that {} is for", input.display()) };
        return fuzzer.replay(target, input);
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["target", "executions", "corpus", "features", "peak memory", "longest input"]);
    let mut failures = Vec::new();
    for target in targets {
        eprintln!("{target}: {} s", arguments.seconds);
        let run = fuzzer.fuzz(target, &seeds.join(target), arguments)?;
        table.add_row(run.row(target));
        failures.extend(run.failure);
    }
    println!("{table}");
    failures.iter().for_each(|failure| eprintln!("\n{failure}"));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Builds the instrumented test binary and returns its path.
fn build() -> Result<PathBuf> {
    let compiler = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let version = String::from_utf8(compiler.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    // A target of its own keeps the instrumentation out of build scripts and procedural macros.
    let words = [
        "test",
        "--no-run",
        "--package=millrace-fuzz",
        "--test=targets",
        "--profile=fuzz",
        "--message-format=json-render-diagnostics",
        "--target",
        host,
        "--target-dir",
    ];
    let output = workspace::cargo(&words)
        .arg(workspace::target()?.join("fuzz/build"))
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env("BOLERO_FUZZER", "libfuzzer")
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the targets do not build ({})", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let program =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let is_it = message["target"]["name"] == "targets";
            message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
        });
    program.context("cargo names no executable")
}

struct Fuzzer {
    /// For what runs leave behind.
    folder: PathBuf,
    program: PathBuf,
}

impl Fuzzer {
    /// The target, which runs in our folder: libFuzzer's arguments are words without quotes, and paths may have blanks.
    fn command(&self, target: &str, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([target, "--exact", "--nocapture", "--test-threads=1"])
            .current_dir(&self.folder)
            .env("BOLERO_LIBFUZZER_ARGS", arguments.join(" "));
        command
    }

    fn replay(&self, target: &str, input: &Path) -> Result<ExitCode> {
        let copy = format!("replay-{target}");
        fs::copy(input, self.folder.join(&copy))
            .with_context(|| format!("cannot read {}", input.display()))?;
        let status = self.command(target, &[copy]).env("RUST_BACKTRACE", "1").status()?;
        println!("{target} {} {}", if status.success() { "takes" } else { "fails on" }, input.display());
        Ok(workspace::exit_code(status))
    }

    fn fuzz(&self, target: &str, seeds: &Path, arguments: &Arguments) -> Result<Run> {
        let (corpus, crashes) = (format!("corpus/{target}"), format!("crashes/{target}"));
        for folder in [&corpus, &crashes] {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        for seed in names(seeds)? {
            fs::copy(seeds.join(&seed), self.folder.join(&corpus).join(&seed))?;
        }
        let before = names(&self.folder.join(&crashes))?;
        let (log, peak) =
            (self.folder.join(format!("{target}.log")), self.folder.join(format!("{target}.peak")));
        [&log, &peak].into_iter().try_for_each(|file| fs::write(file, ""))?;
        let append = || File::options().append(true).open(&log);
        let options = [
            corpus.clone(),
            format!("-artifact_prefix={crashes}/"),
            format!("-max_total_time={}", arguments.seconds),
            format!("-max_len={}", arguments.max_bytes),
            "-timeout=10 -rss_limit_mb=2048 -print_final_stats=1".to_owned(),
        ];
        let status = self
            .command(target, &options)
            .env("MILLRACE_FUZZ_PEAK", &peak)
            .stdout(append()?)
            .stderr(append()?)
            .status()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let crash = names(&self.folder.join(&crashes))?.into_iter().find(|name| !before.contains(name));
        let crash = crash.map(|name| self.folder.join(&crashes).join(name));
        Ok(Run {
            executions: statistic(&text, "number_of_executed_units"),
            corpus: names(&self.folder.join(&corpus))?.len(),
            features: last_status(&text, "ft:"),
            longest: last_status(&text, "lim:"),
            peak: fs::read_to_string(peak)?.parse().unwrap_or(0),
            failure: (!status.success()).then(|| failure(target, crash.as_deref(), &log)),
        })
    }
}

fn failure(target: &str, crash: Option<&Path>, log: &Path) -> String {
    match crash {
        Some(crash) => format!(
            "{target} fails: {}\nWhy: {}\nAgain: cargo xtask fuzz {target} --replay {}",
            crash.display(),
            log.display(),
            crash.display()
        ),
        None => format!("{target} ended early; why: {}", log.display()),
    }
}

/// What one target's run was.
struct Run {
    executions: u64,
    corpus: usize,
    features: u64,
    longest: u64,
    /// Bytes.
    peak: u64,
    failure: Option<String>,
}

impl Run {
    fn row(&self, target: &str) -> [String; 6] {
        let failed = if self.failure.is_some() { " FAILED" } else { "" };
        [
            format!("{target}{failed}"),
            self.executions.to_string(),
            self.corpus.to_string(),
            self.features.to_string(),
            format!("{} KiB", self.peak.div_ceil(1024)),
            format!("{} B", self.longest),
        ]
    }
}

/// `stat::NAME: NUMBER`, at the end of a log.
fn statistic(log: &str, name: &str) -> u64 {
    let value = log.lines().rev().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
    value.and_then(|value| value.trim_start_matches(':').trim().parse().ok()).unwrap_or(0)
}

/// The number behind a word of the last line of status, `#51 REDUCE cov: 12 ft: 40 corp: 9/44b …`.
fn last_status(log: &str, word: &str) -> u64 {
    let after = |line: &str| line.split_whitespace().skip_while(|w| *w != word).nth(1)?.parse().ok();
    log.lines().rev().find_map(after).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_a_log() {
        let log = "#2\tINITED cov: 1 ft: 2 corp: 1/1b lim: 4 exec/s: 0\n#9\tNEW    cov: 3 ft: 40 corp: 2/9b lim: 8 x\nstat::\
                   number_of_executed_units: 123\nstat::new_units_added: 4\n";
        assert_eq!(statistic(log, "number_of_executed_units"), 123);
        assert_eq!((last_status(log, "ft:"), last_status(log, "lim:"), last_status(log, "no:")), (40, 8, 0));
    }
}
