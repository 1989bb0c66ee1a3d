//! What became of every request, event by event, and the one checker that judges it.
//!
//! A history is a JSONL file, an event a line, written while faults happen: a test that panics leaves it behind, and it can be
//! judged again at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_producer::{Code, Error};
use serde::{Deserialize, Serialize};

/// A result, as `x-status` says it.
pub const OK: &str = "ok";

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The request; what is left behind, for [`What::Residue`].
    pub id: String,
    /// What happened to it.
    #[serde(flatten)]
    pub what: What,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// Handed to the client; repeats under the same id are the client's own affair.
    Published {
        /// Whose it is.
        tenant: String,
    },
    /// The broker has it.
    Confirmed,
    /// It is in no queue, and the caller was told why.
    Refused {
        /// The code that the caller got.
        code: String,
    },
    /// Nobody knows whether the broker has it, and the caller was told so.
    Unknown,
    /// A worker runs it.
    Started {
        /// Which worker.
        worker: String,
    },
    /// Its caller was handed an answer.
    Replied {
        /// `ok` or a code; anything else is no answer.
        status: String,
        /// To whom.
        tenant: String,
    },
    /// Its caller stopped waiting: a deadline, or the client was closed. No answer to a confirmed request.
    GaveUp,
    /// Something was left over at the end: messages, permits, descriptors. Zero is as it should be.
    Residue {
        /// How many.
        count: u64,
    },
}

/// Writes a history.
pub struct Ledger {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Ledger {
    /// Begins a history in this file, in place of what was in it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let file = Mutex::new(BufWriter::new(File::create(path)?));
        Ok(Self { path: path.to_owned(), file })
    }

    /// Notes an event.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn note(&self, id: impl fmt::Display, what: What) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut line =
            serde_json::to_vec(&Event { at_ms, id: id.to_string(), what }).expect("events are plain");
        line.push(b'\n');
        self.lock().write_all(&line).expect("the history can be written");
    }

    /// Notes what [`Client::submit`](millrace_producer::Client::submit) said of a request without a handle for it.
    pub fn note_unsubmitted(&self, id: impl fmt::Display + Copy, tenant: &str, error: &Error) {
        match error {
            Error::Refused { code, .. } => self.note(id, What::Refused { code: code.to_string() }),
            Error::Invalid(_) => self.note(id, What::Refused { code: error.code().to_string() }),
            Error::UnknownOutcome { .. } | Error::DeadlineExceeded { .. } | Error::Closed => {
                self.note(id, What::Unknown);
            }
            Error::Failed { .. } | Error::MalformedReply { .. } => {
                self.note(id, What::Confirmed);
                self.note_failed(id, tenant, error);
            }
        }
    }

    /// Notes why a [`Handle`](millrace_producer::Handle) gave no result. A refusal is an answer: the request's pack was taken,
    /// failed, and its members went again by themselves.
    pub fn note_failed(&self, id: impl fmt::Display, tenant: &str, error: &Error) {
        let what = match error {
            Error::Failed { code, .. } | Error::Refused { code, .. } => {
                What::Replied { status: code.to_string(), tenant: tenant.to_owned() }
            }
            Error::MalformedReply { .. } => {
                What::Replied { status: "malformed".to_owned(), tenant: tenant.to_owned() }
            }
            _ => What::GaveUp,
        };
        self.note(id, what);
    }

    /// Ends the history and judges it, as it is in the file.
    ///
    /// # Errors
    /// When the file cannot be written or read again.
    pub fn judge(&self, limits: Limits) -> std::io::Result<Verdict> {
        self.lock().flush()?;
        Verdict::of_file(&self.path, limits)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BufWriter<File>> {
        // A line is written whole or the process ends.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is still in order.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Runs of one request, at most.
    pub starts: u32,
}

/// What can be wrong with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offence {
    /// Nothing was published: whatever it was to show, it did not.
    Empty,
    /// Confirmed, and its caller has no answer.
    Lost,
    /// Its caller was handed two answers.
    Duplicated,
    /// An answer without a request, before it, to somebody else, or to what was refused.
    Unexpected,
    /// A refused request ran.
    Overheard,
    /// Published, and nobody was told what became of it.
    Untold,
    /// Told two things that cannot both be true.
    Contradicted,
    /// A refusal or failure without one of the wire contract's codes.
    Untyped,
    /// Ran more often than the limit.
    Overrun,
    /// Something was left over.
    Residue,
}

/// What a history comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Published.
    pub requests: usize,
    /// Confirmed by the broker.
    pub confirmed: usize,
    /// Refused.
    pub refused: usize,
    /// Of unknown outcome.
    pub unknown: usize,
    /// Answered with a result.
    pub ok: usize,
    /// Answered with a code.
    pub failed: usize,
    /// Of unknown outcome, and answered.
    pub recovered: usize,
    /// Their callers stopped waiting.
    pub gave_up: usize,
    /// The most runs of any request.
    pub most_starts: u32,
    /// What is wrong, and with which requests.
    pub offences: BTreeMap<Offence, BTreeSet<String>>,
}

/// What a request's events say.
#[derive(Default)]
struct Fate {
    tenant: Option<String>,
    confirmed: u32,
    refused: u32,
    unknown: u32,
    starts: u32,
    ok: u32,
    failed: u32,
    gave_up: bool,
}

impl Verdict {
    /// Judges a history in a file.
    ///
    /// # Errors
    /// When it cannot be read, or a line is no event.
    pub fn of_file(path: &Path, limits: Limits) -> std::io::Result<Self> {
        let lines = BufReader::new(File::open(path)?).lines();
        let mut judge = Judge::default();
        for line in lines {
            judge.hear(serde_json::from_str(&line?)?);
        }
        Ok(judge.verdict(limits))
    }

    /// Judges events in the order in which they happened.
    pub fn of(events: impl IntoIterator<Item = Event>, limits: Limits) -> Self {
        let mut judge = Judge::default();
        events.into_iter().for_each(|event| judge.hear(event));
        judge.verdict(limits)
    }

    /// Checks that nothing is wrong.
    ///
    /// # Panics
    /// When something is, with what and with whom.
    pub fn assert_clean(&self) {
        assert!(self.offences.is_empty(), "{self}\n{:#?}", self.offences);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, confirmed, refused, unknown, ok, failed, recovered, gave_up, .. } = self;
        write!(
            f,
            "{requests} requests: {confirmed} confirmed, {refused} refused, {unknown} unknown; {ok} results, {failed} typed \
             failures, {recovered} of the unknown answered, {gave_up} given up, at most {} runs of one; ",
            self.most_starts
        )?;
        if self.offences.is_empty() {
            return f.write_str("nothing lost, doubled, unexpected or left over");
        }
        let offences =
            self.offences.iter().map(|(offence, ids)| format!("{} {offence:?}", ids.len()).to_lowercase());
        f.write_str(&offences.collect::<Vec<_>>().join(", "))
    }
}

#[derive(Default)]
struct Judge {
    fates: HashMap<String, Fate>,
    offences: BTreeMap<Offence, BTreeSet<String>>,
}

impl Judge {
    fn hear(&mut self, Event { id, what, .. }: Event) {
        if let What::Residue { count } = what {
            if count > 0 {
                self.accuse(Offence::Residue, &format!("{count} {id}"));
            }
            return;
        }
        let fate = self.fates.entry(id.clone()).or_default();
        let is_published = fate.tenant.is_some();
        let mut offences = Vec::new();
        match what {
            What::Published { tenant } => {
                // The same id for two requests: neither could be told apart.
                offences.extend(is_published.then_some(Offence::Contradicted));
                fate.tenant = Some(tenant);
            }
            What::Confirmed => fate.confirmed += 1,
            What::Unknown => fate.unknown += 1,
            What::Refused { code } => {
                fate.refused += 1;
                offences.extend(code.parse::<Code>().is_err().then_some(Offence::Untyped));
            }
            What::Started { .. } => {
                fate.starts += 1;
                offences.extend((!is_published).then_some(Offence::Unexpected));
            }
            What::Replied { status, tenant } => {
                let is_expected = fate.tenant.as_ref() == Some(&tenant);
                offences.extend((!is_expected).then_some(Offence::Unexpected));
                if status == OK {
                    fate.ok += 1;
                } else {
                    fate.failed += 1;
                    offences.extend(status.parse::<Code>().is_err().then_some(Offence::Untyped));
                }
            }
            What::GaveUp => fate.gave_up = true,
            What::Residue { .. } => {}
        }
        for offence in offences {
            self.accuse(offence, &id);
        }
    }

    fn accuse(&mut self, offence: Offence, id: &str) {
        self.offences.entry(offence).or_default().insert(id.to_owned());
    }

    fn verdict(mut self, limits: Limits) -> Verdict {
        let mut verdict = Verdict::default();
        let fates = std::mem::take(&mut self.fates);
        for (id, fate) in &fates {
            let replies = fate.ok + fate.failed;
            let told = fate.confirmed + fate.refused + fate.unknown;
            let is_published = fate.tenant.is_some();
            let wrong = [
                (Offence::Lost, fate.confirmed > 0 && replies == 0),
                (Offence::Duplicated, replies > 1),
                (Offence::Unexpected, fate.refused > 0 && replies > 0),
                (Offence::Overheard, fate.refused > 0 && fate.starts > 0),
                (Offence::Untold, is_published && told == 0),
                (Offence::Contradicted, told > 1 || (!is_published && told > 0)),
                (Offence::Overrun, fate.starts > limits.starts),
            ];
            for (offence, _) in wrong.iter().filter(|(_, is_so)| *is_so) {
                self.accuse(*offence, id);
            }
            verdict.requests += usize::from(is_published);
            verdict.confirmed += usize::from(fate.confirmed > 0);
            verdict.refused += usize::from(fate.refused > 0);
            verdict.unknown += usize::from(fate.unknown > 0);
            verdict.ok += usize::from(fate.ok > 0);
            verdict.failed += usize::from(fate.failed > 0);
            verdict.recovered += usize::from(fate.unknown > 0 && replies > 0);
            verdict.gave_up += usize::from(fate.gave_up);
            verdict.most_starts = verdict.most_starts.max(fate.starts);
        }
        if verdict.requests == 0 {
            self.accuse(Offence::Empty, "nothing was published");
        }
        Verdict { offences: self.offences, ..verdict }
    }
}

#[cfg(test)]
mod tests;
