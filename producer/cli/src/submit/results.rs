//! The output file: append only, a line is whole or cut off, and a reply is acknowledged after its line is written.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufReader, ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use millrace_producer::{Code, Receipt};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::answer::{Answer, Written};
use super::bitmap::Bitmap;
use super::input::{Lines, Text};
use crate::exit::usage;

/// Answers gathered before they are written, in bytes.
const GATHER: usize = 1 << 20;
/// Between two tries to lock the file.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// The longest output line that is read back: a message's limit, as text.
const MAX_LINE: usize = 2 << 30;

/// Lines of an input whose length is not known, at most; a number from outside must not fill memory.
pub(super) const MAX_LINES: u64 = 1 << 32;

/// Answers by status.
pub(super) type Statuses = BTreeMap<&'static str, u64>;

/// The output file, locked against a second run.
#[derive(Debug)]
pub(super) struct Results {
    path: PathBuf,
    file: tokio::fs::File,
    buffer: Vec<u8>,
    gathered: usize,
    receipts: Vec<Receipt>,
    /// Lines answered.
    pub(super) done: Bitmap,
    /// Their statuses.
    pub(super) statuses: Statuses,
}

impl Results {
    /// Opens and locks the file, creating it if need be.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.with_context(|| format!("cannot open {}", path.display()))?;
        if !file.metadata()?.is_file() {
            return Err(usage(format!("{} is not a regular file: resuming needs one", path.display())));
        }
        lock(&file, path).await?;
        Ok(Self {
            path: path.to_owned(),
            file: file.into(),
            buffer: Vec::new(),
            gathered: 0,
            receipts: Vec::new(),
            done: Bitmap::default(),
            statuses: Statuses::new(),
        })
    }

    /// Whether nothing was written yet.
    pub(super) fn is_empty(&self) -> Result<bool> {
        Ok(std::fs::metadata(&self.path)?.len() == 0)
    }

    /// Removes all answers.
    pub(super) async fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        Ok(())
    }

    /// Reads what an earlier run wrote; cuts off a last line that was not written to its end.
    pub(super) async fn resume(&mut self, lines: u64) -> Result<()> {
        let path = self.path.clone();
        let (done, statuses, length) =
            tokio::task::spawn_blocking(move || read_back(&path, lines)).await.context("reading back")??;
        self.file.set_len(length).await?;
        self.file.seek(SeekFrom::End(0)).await?;
        (self.done, self.statuses) = (done, statuses);
        Ok(())
    }

    /// Takes an answer. A line that has one already keeps it: then this is false, and only the receipt counts.
    pub(super) async fn add(&mut self, answer: &Answer, receipt: Option<Receipt>) -> Result<bool> {
        let is_new = self.done.set(answer.line);
        if is_new {
            *self.statuses.entry(answer.failure.map_or("ok", Code::as_str)).or_default() += 1;
            self.buffer.extend_from_slice(&answer.text);
            self.gathered += 1;
        }
        self.receipts.extend(receipt);
        if self.buffer.len() >= GATHER {
            self.write().await?;
        }
        Ok(is_new)
    }

    /// Takes the receipt of a reply to a line that has its answer; that answer may still have to be written.
    pub(super) fn duplicate(&mut self, receipt: Receipt) {
        self.receipts.push(receipt);
    }

    /// Answers taken and not yet written.
    pub(super) fn gathered(&self) -> usize {
        self.gathered
    }

    /// Hands what was gathered to the operating system, then acknowledges the replies.
    pub(super) async fn write(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            let written = async {
                self.file.write_all(&self.buffer).await?;
                self.file.flush().await
            };
            written.await.with_context(|| {
                format!(
                    "cannot write {}; nothing is lost: make room and run the same command again",
                    self.path.display()
                )
            })?;
            self.buffer.clear();
            self.buffer.shrink_to(GATHER);
            self.gathered = 0;
        }
        for receipt in self.receipts.drain(..) {
            receipt.acknowledge();
        }
        Ok(())
    }

    /// Lines without a result.
    pub(super) fn failed(&self) -> u64 {
        self.done.count() - self.statuses.get("ok").copied().unwrap_or(0)
    }

    /// Makes all of it survive a power cut.
    pub(super) async fn sync(&mut self) -> Result<()> {
        self.file.sync_all().await.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// A run that was just killed may take a moment to go.
async fn lock(file: &File, path: &Path) -> Result<()> {
    let mut tries_left = 20;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            // A file system without locks: nothing to be done about it.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
            Err(TryLockError::WouldBlock) if tries_left == 0 => {
                return Err(usage(format!(
                    "another `millrace submit` is writing {}: wait for it, or stop it first",
                    path.display()
                )));
            }
            Err(TryLockError::WouldBlock) => {
                tries_left -= 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        }
    }
}

/// The lines answered, their statuses, and the length of the file up to the last whole line.
fn read_back(path: &Path, lines: u64) -> Result<(Bitmap, Statuses, u64)> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut done = Bitmap::default();
    let mut statuses = Statuses::new();
    let mut whole = 0;
    let mut reader = Lines::new(BufReader::with_capacity(256 << 10, file), MAX_LINE);
    let mut bad = None;
    while let Some(line) = reader.next_line()? {
        if let Some(number) = bad {
            // Only the last line can have been torn.
            return Err(usage(format!(
                "line {number} of {} is not an answer of this run: name another output, or --restart",
                path.display()
            )));
        }
        let known = match &line.text {
            Text::Some(text) => Written::read(text).filter(|(line, _)| *line < lines),
            _ => None,
        };
        match known {
            Some((answered, failure)) if reader.is_ended() => {
                if done.set(answered) {
                    *statuses.entry(failure.map_or("ok", Code::as_str)).or_default() += 1;
                }
                whole = reader.position();
            }
            _ => bad = Some(line.number + 1),
        }
    }
    Ok((done, statuses, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64, status: &str) -> String {
        format!("{{\"custom_id\":\"a\",\"line\":{number},\"status\":\"{status}\"}}\n")
    }

    async fn resumed(text: &str) -> Result<(Results, String)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut results = Results::open(file.path()).await?;
        results.resume(100).await?;
        let answer = Answer { line: 42, failure: None, worker: None, latency: None, text: b"new\n".to_vec() };
        assert!(results.add(&answer, None).await?);
        assert!(!results.add(&answer, None).await?);
        results.write().await?;
        Ok((results, std::fs::read_to_string(file.path()).unwrap()))
    }

    #[tokio::test]
    async fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
        let whole = line(0, "ok") + &line(7, "poison");
        let torn = line(9, "ok");
        for cut in 0..torn.len() {
            let (results, text) = resumed(&(whole.clone() + &torn[..cut])).await.unwrap();
            assert_eq!(text, whole.clone() + "new\n", "{cut}");
            assert_eq!(results.done.count(), 3);
            assert_eq!(results.failed(), 1);
        }
        let (results, text) = resumed(&(whole.clone() + &torn)).await.unwrap();
        assert_eq!((results.done.count(), text), (4, whole + &torn + "new\n"));
    }

    #[tokio::test]
    async fn a_tail_of_zeros_is_cut_off_and_other_text_is_refused() {
        let (_, text) = resumed(&(line(0, "ok") + "\0\0\0\0\n")).await.unwrap();
        assert_eq!(text, line(0, "ok") + "new\n");
        for bad in ["hello\n".to_owned() + &line(0, "ok"), line(100, "ok") + &line(0, "ok")] {
            assert!(resumed(&bad).await.is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn two_runs_do_not_share_an_output() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = Results::open(file.path()).await.unwrap();
        assert!(Results::open(file.path()).await.unwrap_err().to_string().contains("another"));
        drop(first);
        Results::open(file.path()).await.unwrap();
    }
}
