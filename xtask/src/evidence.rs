//! `cargo xtask evidence`

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::test::{RabbitMqVersion, run_with};
use crate::workspace;

/// Gather evidence that takes longer than tests may, and keep it
///
/// Runs a release build and appends what came of it to docs/evidence: figures, seed, commit, machine and command. The history of every
/// request stays in the target folder.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask evidence endurance               half an hour of kills and restarts\n  cargo xtask \
                        evidence endurance --minutes 120\n  cargo xtask evidence soak                    an hour"
)]
pub(crate) struct Arguments {
    /// What to show
    #[arg(value_enum)]
    name: Evidence,
    /// How long [default: 32 for endurance and chaos, 60 for soak, 2 for switches]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: Option<u64>,
    /// Chooses what is random [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Which broker to use
    #[arg(long, value_enum, default_value_t = RabbitMqVersion::System)]
    rabbitmq: RabbitMqVersion,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Evidence {
    /// Workers killed every 5 s and the broker restarted every minute: nothing is lost, doubled or run too often
    Endurance,
    /// Workers, broker and clients killed, stopped and frozen at random
    Chaos,
    /// Everything that users do, for an hour: memory, descriptors, threads and connections stay what they are
    Soak,
    /// Eight workers at work hear of a switch in less than a second, 99 of 100 times
    Switches,
}

impl Evidence {
    /// Its name, and what tells it how long, in seconds.
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Endurance => ("endurance", "MILLRACE_ENDURANCE_SECONDS"),
            Self::Chaos => ("chaos", "MILLRACE_CHAOS_SECONDS"),
            Self::Soak => ("soak", "MILLRACE_SOAK_SECONDS"),
            Self::Switches => ("switches", "MILLRACE_SWITCHING_SECONDS"),
        }
    }

    /// So long that its figures count.
    fn minutes(self) -> u64 {
        match self {
            Self::Endurance | Self::Chaos => 32,
            Self::Soak => 60,
            Self::Switches => 2,
        }
    }

    /// What chooses its test alone.
    fn filter(self) -> &'static str {
        match self {
            Self::Endurance => "endurance::",
            Self::Chaos => "chaos::",
            Self::Soak => "soak::soak_holds",
            Self::Switches => "switches::",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (name, seconds) = arguments.name.name();
    let folder = workspace::target()?.join("evidence");
    fs::create_dir_all(&folder)?;
    let (history, figures) = (folder.join(format!("{name}.jsonl")), folder.join(format!("{name}.txt")));
    fs::write(&figures, "")?;
    eprintln!("History: {}", history.display());
    let minutes = arguments.minutes.unwrap_or(arguments.name.minutes());
    eprintln!("It takes about {minutes} minutes");
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let settings: Vec<(&str, OsString)> = vec![
        (seconds, (minutes * 60).to_string().into()),
        ("MILLRACE_SEED", seed.to_string().into()),
        ("MILLRACE_HISTORY", history.into()),
        ("MILLRACE_FIGURES", figures.clone().into()),
    ];
    let words = [
        "--release",
        "-p",
        "millrace-tests",
        "--test",
        "faults",
        "--",
        arguments.name.filter(),
        "--include-ignored",
        "--nocapture",
    ];
    // As of now: whoever goes on working meanwhile shows nothing of that.
    let begun = (printed("date", &["-u", "+%F %H:%M UTC"])?, commit()?);
    let code = run_with(arguments.rabbitmq, &words.map(str::to_owned), &settings)?;
    ensure!(code == ExitCode::SUCCESS, "it failed; nothing is kept in docs/evidence");
    let entry = entry(arguments, minutes, seed, &begun, &fs::read_to_string(figures)?)?;
    let kept = workspace::root().join(format!("docs/evidence/{name}.md"));
    fs::create_dir_all(kept.parent().context("it has a folder")?)?;
    let mut file = OpenOptions::new().create(true).append(true).open(&kept)?;
    file.write_all(entry.as_bytes())?;
    println!("{entry}\nKept in {}", kept.display());
    Ok(code)
}

/// What is appended.
fn entry(
    arguments: &Arguments,
    minutes: u64,
    seed: u64,
    (begun, commit): &(String, String),
    figures: &str,
) -> Result<String> {
    let (name, _) = arguments.name.name();
    let mut entry = format!("\n## Commit {commit}\n\n");
    let broker = if arguments.rabbitmq == RabbitMqVersion::Newest { " --rabbitmq 4.3" } else { "" };
    writeln!(
        entry,
        "`cargo xtask evidence {name} --minutes {minutes} --seed {seed}{broker}`, {}, begun {begun}.\n",
        machine()?
    )?;
    for line in figures.lines() {
        writeln!(entry, "- {line}")?;
    }
    Ok(entry)
}

fn commit() -> Result<String> {
    let git = |words: &[&str]| printed("git", words);
    let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(format!("{}{}", git(&["rev-parse", "--short=12", "HEAD"])?, if is_changed { ", changed" } else { "" }))
}

/// What a command prints.
fn printed(command: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(command).args(words).current_dir(workspace::root()).output();
    let output = output.with_context(|| format!("cannot run {command}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command} {}: {errors}", words.join(" "));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn machine() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    Ok(format!("{cores} cores of {model}"))
}
