//! `millrace submit` as a process: started, interrupted, started again, and what its output says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use millrace_harness::process::{Process, binary};
use serde_json::Value;
use tempfile::TempDir;

use crate::stack::Stack;

/// An input file, its output, and how to run the command over them.
pub struct Batch {
    folder: TempDir,
    lines: usize,
    in_flight: usize,
    model: &'static str,
    environment: Vec<(String, String)>,
}

impl Batch {
    /// Writes an input of `lines` requests, each of one row of four times its line's number.
    pub fn new(stack: &Stack, model: &'static str, lines: usize, in_flight: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut text = String::new();
        for line in 0..lines {
            let input = format!(
                r#"{{"name":"x","shape":[1,4],"datatype":"FP32","data":[{line},{line},{line},{line}]}}"#
            );
            writeln!(text, r#"{{"custom_id":"id-{line}","body":{{"inputs":[{input}]}}}}"#)
                .expect("text takes text");
        }
        std::fs::write(folder.path().join("in.jsonl"), text).expect("the folder is writable");
        Self { folder, lines, in_flight, model, environment: stack.environment() }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("out.jsonl")
    }

    /// Starts the command, or starts it again.
    pub fn start(&self) -> Process {
        let mut command = Command::new(binary("millrace").expect("the binary is built"));
        command.current_dir(self.folder.path());
        command.args(["submit", "in.jsonl", "-o", "out.jsonl", "--model", self.model, "--in-flight"]);
        command.arg(self.in_flight.to_string());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Process::spawn(command).expect("it starts")
    }

    /// Whole lines of the output so far.
    pub fn answered(&self) -> usize {
        std::fs::read(self.output()).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count())
    }

    /// What the command keeps while a run is not complete.
    pub fn state_file(&self) -> PathBuf {
        self.folder.path().join("out.jsonl.millrace")
    }

    /// Checks that every line of the input has one answer, its own, and a good one.
    ///
    /// # Panics
    /// When one is lost, doubled, foreign or wrong.
    pub fn assert_complete(&self) {
        let answers = read(&self.output());
        for line in 0..self.lines {
            let found = answers.get(&format!("id-{line}")).map_or(&[][..], Vec::as_slice);
            assert_eq!(found.len(), 1, "line {line} has these answers: {found:?}");
            let data = &found[0]["response"]["outputs"][0]["data"];
            let is_own = data.as_array().is_some_and(|data| {
                data.len() == 4 && data.iter().all(|value| value.as_f64() == Some(line as f64))
            });
            assert!(found[0]["status"] == "ok" && is_own, "line {line}: {}", found[0]);
        }
        assert_eq!(answers.len(), self.lines, "answers to lines that were not in the input");
    }
}

fn read(output: &Path) -> BTreeMap<String, Vec<Value>> {
    let text = std::fs::read_to_string(output).expect("an output");
    let mut answers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in text.lines() {
        let answer: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        answers.entry(answer["custom_id"].as_str().unwrap_or_default().to_owned()).or_default().push(answer);
    }
    answers
}
