//! What an interrupted run leaves for the next one: `OUTPUT.millrace`.
//!
//! Two lines of text: the run as JSON, and how far lines were sent, as a number of fixed width that is overwritten in place.
//! Lines are sent in order, so that those below this mark without an answer are the ones that were in flight.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::survey::Fingerprint;
use crate::exit::usage;

const FORMAT: u32 = 1;
const MARK_DIGITS: usize = 20;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    format: u32,
    /// Names the run in the broker's list of connections.
    pub(super) id: String,
    /// Where replies go.
    pub(super) reply_key: String,
    /// Prefix of the broker's names.
    pub(super) prefix: String,
    /// The input.
    pub(super) input: Fingerprint,
    /// What lines get that do not say it themselves.
    pub(super) options: Options,
    /// Requests in flight, at most.
    pub(super) in_flight: usize,
}

/// The options that an interrupted run and its continuation must share, or lines would be treated differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    pub(super) model: Option<String>,
    pub(super) tier: Option<String>,
    pub(super) version: Option<u64>,
}

impl Run {
    /// A new run.
    pub(super) fn new(
        reply_key: String,
        prefix: String,
        input: Fingerprint,
        options: Options,
        in_flight: usize,
    ) -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string()[20..].to_owned();
        Self { format: FORMAT, id, reply_key, prefix, input, options, in_flight }
    }

    /// Makes this run the continuation of `earlier`, which may have left requests in flight.
    pub(super) fn go_on(&mut self, earlier: Self, is_some_in_flight: bool) {
        self.id = earlier.id;
        self.reply_key = earlier.reply_key;
        if is_some_in_flight {
            // They stay in flight besides our own.
            self.in_flight = self.in_flight.max(earlier.in_flight);
        }
    }

    /// Whether `now` may go on with this run; says what differs if not.
    pub(super) fn check(&self, now: &Self, user: &str) -> Result<()> {
        let own = self.reply_key.rsplit_once('.').map_or("", |(user, _)| user);
        let differs = [
            ("the input", self.input != now.input),
            ("--model", self.options.model != now.options.model),
            ("--tier", self.options.tier != now.options.tier),
            ("--version", self.options.version != now.options.version),
            ("topology.prefix", self.prefix != now.prefix),
            ("the broker's user", own != user),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((what, _)) => Err(usage(format!(
                "{what} is not what the interrupted run had: use the same again to go on, or --restart to begin anew"
            ))),
        }
    }
}

/// The file, kept open.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    file: File,
    mark_at: u64,
    mark: u64,
}

impl StateFile {
    /// The file that belongs to an output.
    pub(super) fn path(output: &Path) -> PathBuf {
        let mut name = OsString::from(output);
        name.push(".millrace");
        name.into()
    }

    /// What an interrupted run left, and its mark; `None` where there was none.
    pub(super) fn read(path: &Path) -> Result<Option<(Run, u64)>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut lines = text.lines();
        let run = lines.next().and_then(|line| serde_json::from_str::<Run>(line).ok());
        let mark = lines.next().and_then(|line| line.parse().ok());
        match (run, mark) {
            (Some(run), Some(mark)) if run.format == FORMAT => Ok(Some((run, mark))),
            _ => Err(usage(format!(
                "{} is damaged or of another version: use --restart to begin anew",
                path.display()
            ))),
        }
    }

    /// Writes the file; afterwards it is there as a whole or not at all.
    pub(super) fn create(path: &Path, run: &Run, mark: u64) -> Result<Self> {
        let write = || {
            let mut text = serde_json::to_vec(run)?;
            text.push(b'\n');
            let mark_at = text.len() as u64;
            writeln!(text, "{mark:0MARK_DIGITS$}")?;
            let mut name = OsString::from(path);
            name.push(".new");
            let mut file = File::create(&name)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&name, path)?;
            Ok::<_, std::io::Error>(Self { path: path.to_owned(), file, mark_at, mark })
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Notes that lines below `mark` may have been sent. Call it before sending them.
    pub(super) fn advance(&mut self, mark: u64) -> Result<()> {
        if mark > self.mark {
            self.file
                .write_all_at(format!("{mark:0MARK_DIGITS$}").as_bytes(), self.mark_at)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
            self.mark = mark;
        }
        Ok(())
    }

    /// All lines have their answer: the file has done its duty.
    pub(super) fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes a state file, if there is one.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let options = Options { model: Some("m".into()), tier: None, version: None };
        let input = Fingerprint::of_first_line(b"{}");
        Run::new("ann.abcdefghijklmnopqrstuv".into(), "millrace".into(), input, options, 256)
    }

    #[test]
    fn state_and_mark_are_read_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = StateFile::path(&directory.path().join("out.jsonl"));
        assert!(path.ends_with("out.jsonl.millrace"));
        assert_eq!(StateFile::read(&path).unwrap(), None);
        let mut file = StateFile::create(&path, &run(), 0).unwrap();
        let id = StateFile::read(&path).unwrap().unwrap().0.id;
        for mark in [1, 512, 100_000, 7] {
            file.advance(mark).unwrap();
        }
        let (read, mark) = StateFile::read(&path).unwrap().unwrap();
        assert_eq!((mark, &read), (100_000, &Run { id, ..run() }));
        file.remove().unwrap();
        assert_eq!(StateFile::read(&path).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let good = serde_json::to_string(&run()).unwrap();
        for text in [
            String::new(),
            good.clone(),
            format!("{}\n7", &good[1..]),
            format!("{}\n7", good.replace("\"format\":1", "\"format\":2")),
            format!("{good}\nseven"),
        ] {
            std::fs::write(file.path(), &text).unwrap();
            let error = StateFile::read(file.path()).unwrap_err();
            assert!(error.to_string().contains("--restart"), "{text}: {error}");
        }
    }

    #[test]
    fn only_the_same_run_goes_on() {
        let run = run();
        run.check(&Run { in_flight: 1, id: "other".into(), ..run.clone() }, "ann").unwrap();
        let refused = |now: Run, user: &str| run.check(&now, user).unwrap_err().to_string();
        assert!(refused(run.clone(), "bob").contains("user"));
        assert!(refused(Run { prefix: "p".into(), ..run.clone() }, "ann").contains("prefix"));
        let input = Fingerprint::of_first_line(b"{ }");
        assert!(refused(Run { input, ..run.clone() }, "ann").contains("input"));
        let options = Options { model: None, ..run.options.clone() };
        assert!(refused(Run { options, ..run.clone() }, "ann").contains("--model"));
    }
}
