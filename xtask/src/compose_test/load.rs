//! Load on the stack: `millrace submit` of many digits, and a ledger of its answers.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_harness::process::Process;
use serde::Deserialize;
use tempfile::TempDir;

use super::engine::Container;
use crate::workspace;

const PIXELS: usize = 64;

/// A line of the output.
#[derive(Deserialize)]
pub(super) struct Answer {
    custom_id: String,
    status: String,
    worker: Option<String>,
}

impl Answer {
    /// A worker's name begins with its host's, which is the container's short id.
    pub(super) fn is_by(&self, container: &Container) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.starts_with(&container.id[..12]))
    }
}

/// A run of `millrace submit`.
pub(super) struct Load {
    process: Process,
    output: PathBuf,
    lines: usize,
    _folder: TempDir,
}

impl Load {
    pub(super) fn start(binaries: &Path, amqp_url: &str, lines: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("millrace-compose-").tempdir()?;
        let (input, output) = (folder.path().join("requests.jsonl"), folder.path().join("results.jsonl"));
        fs::write(&input, requests(lines)?)?;
        let mut command = Command::new(binaries.join("millrace"));
        command.arg("submit").arg(&input).arg("--output").arg(&output).args(["--model", "digits"]);
        command.env("MILLRACE_AMQP_URL", amqp_url);
        Ok(Self { process: Process::spawn(command)?, output, lines, _folder: folder })
    }

    /// The answers so far.
    pub(super) fn answers(&self) -> Result<Vec<Answer>> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Waits for the end and checks that every line has one answer, and a good one.
    pub(super) fn finish(mut self, patience: Duration) -> Result<Vec<Answer>> {
        let status = self.process.wait(patience)?;
        ensure!(status.success(), "`millrace submit` failed ({status}):\n{}", self.process.stderr());
        println!("{}", self.process.stdout().trim_end());
        let answers = self.answers()?;
        check(&answers, self.lines)?;
        Ok(answers)
    }
}

fn check(answers: &[Answer], lines: usize) -> Result<()> {
    let mut counts = vec![0_usize; lines];
    for answer in answers {
        let count = answer.custom_id.parse().ok().and_then(|line: usize| counts.get_mut(line));
        *count.with_context(|| format!("an answer to `{}`, which was not asked", answer.custom_id))? += 1;
        ensure!(answer.status == "ok", "line {} was answered `{}`", answer.custom_id, answer.status);
    }
    let lost = counts.iter().filter(|&&count| count == 0).count();
    let duplicated = counts.iter().filter(|&&count| count > 1).count();
    ensure!(lost == 0 && duplicated == 0, "lines lost: {lost}, answered twice: {duplicated}, of {lines}");
    Ok(())
}

/// The digits over and over; the id is the line's number.
fn requests(lines: usize) -> Result<String> {
    let digits = fs::read_to_string(workspace::root().join("compose/data/digits.csv"))?;
    let images: Vec<String> =
        digits.lines().skip(1).map(|row| row.split(',').take(PIXELS).collect::<Vec<_>>().join(",")).collect();
    let mut text = String::new();
    for (line, image) in images.iter().cycle().take(lines).enumerate() {
        let tensor = format!(r#"{{"name":"image","shape":[1,{PIXELS}],"datatype":"FP32","data":[{image}]}}"#);
        writeln!(text, r#"{{"custom_id":"{line}","body":{{"inputs":[{tensor}]}}}}"#)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(ids: &[&str], status: &str) -> Vec<Answer> {
        let answer = |id: &&str| Answer { custom_id: (*id).into(), status: status.into(), worker: None };
        ids.iter().map(answer).collect()
    }

    #[test]
    fn the_ledger_sees_what_is_lost_duplicated_unexpected_or_failed() {
        assert!(check(&answers(&["1", "0"], "ok"), 2).is_ok());
        for (ids, status) in [
            (&["0"][..], "ok"),
            (&["0", "1", "1"], "ok"),
            (&["0", "1", "2"], "ok"),
            (&["0", "1"], "backend_error"),
        ] {
            assert!(check(&answers(ids, status), 2).is_err(), "{ids:?} {status}");
        }
    }
}
