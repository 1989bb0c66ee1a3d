//! One client as a process: this program again, with its work in a file.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use millrace_harness::process::Process;
use tempfile::TempDir;

use super::sender::Sender;
use super::tally::Tally;
use super::{Arrivals, Outcome, Spec, closed, open, schedule};

/// What a client prints once it can start, and once the broker has taken a whole burst.
const READY: &str = "connected";
pub(super) const ALL_TAKEN: &str = "the broker has every request";

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// A client that another process runs. Dropping it kills it.
pub(crate) struct Generator {
    process: Process,
    spec: Spec,
    _directory: TempDir,
}

impl Generator {
    /// Starts it; it connects and waits for [`Generator::go`]. The directory is for what it is told.
    pub(crate) fn spawn(mut spec: Spec, directory: TempDir) -> Result<Self> {
        spec.go = directory.path().join("go");
        let file = directory.path().join("spec.json");
        std::fs::write(&file, serde_json::to_vec(&spec)?)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("generate").arg(&file);
        Ok(Self { process: Process::spawn(command)?, spec, _directory: directory })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Waits until it is connected.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.process.wait_for_line(READY, PATIENCE)?;
        Ok(())
    }

    /// Lets it start then.
    pub(crate) fn go(&self, start: SystemTime) -> Result<()> {
        let millis = start.duration_since(UNIX_EPOCH)?.as_millis();
        let half = self.spec.go.with_extension("half");
        std::fs::write(&half, millis.to_string())?;
        Ok(std::fs::rename(half, &self.spec.go)?)
    }

    /// Waits until the broker has taken the whole burst.
    pub(crate) fn taken(&mut self) -> Result<()> {
        self.process.wait_for_line(ALL_TAKEN, PATIENCE)?;
        Ok(())
    }

    /// Waits for the end of its work, which it was told to start.
    pub(crate) fn finish(mut self) -> Result<Outcome> {
        let work = self.spec.warm_up + self.spec.duration + self.spec.deadline;
        let status = self.process.wait(work + PATIENCE)?;
        anyhow::ensure!(status.success(), "a client failed ({status}):\n{}", self.process.stderr());
        let output = self.process.stdout();
        let line = output.lines().find(|line| line.starts_with('{'));
        Ok(serde_json::from_str(line.context("a client told no outcome")?)?)
    }
}

/// The process's own side: connects, waits for the start, sends, prints the outcome.
pub(crate) async fn serve(file: &Path) -> Result<()> {
    let spec: Spec = serde_json::from_slice(&std::fs::read(file)?)?;
    let sender = Sender::connect(&spec).await?;
    println!("{READY}");
    let start = start(&spec.go).await?;
    let mut tally = Tally::new(&spec, start);
    let end = spec.warm_up + spec.duration;
    match spec.arrivals {
        Arrivals::Closed { in_flight } => closed::run(&sender, in_flight, start, &mut tally).await,
        Arrivals::Poisson { per_second } => {
            let times = schedule::poisson(per_second, spec.quiet..end, spec.seed);
            open::run(&sender, times, start, &mut tally).await;
        }
        Arrivals::Burst { count } => open::run(&sender, schedule::burst(count), start, &mut tally).await,
    }
    sender.close().await;
    println!("{}", serde_json::to_string(&tally.outcome())?);
    Ok(())
}

async fn start(go: &Path) -> Result<Instant> {
    let started = Instant::now();
    while !go.exists() {
        anyhow::ensure!(started.elapsed() < PATIENCE * 5, "nobody gave the word to start");
        tokio::time::sleep(POLL).await;
    }
    let millis: u64 = std::fs::read_to_string(go)?.parse()?;
    let start = UNIX_EPOCH + Duration::from_millis(millis);
    Ok(Instant::now() + start.duration_since(SystemTime::now()).unwrap_or_default())
}
