//! One look over the whole input before anything is sent: how long it is, whether it is the one that an interrupted run
//! had, and whether a `custom_id` stands twice.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Result};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bitmap::Bitmap;
use super::input::{Line, Lines, Source, Text};

/// Ids looked at for duplicates, at most: 8 bytes each.
const MAX_IDS: usize = 4_000_000;
/// Duplicates named.
const EXAMPLES: usize = 5;
const BUFFER: usize = 256 << 10;

/// What identifies an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    /// Size; unknown of pipes.
    pub(super) bytes: Option<u64>,
    /// Of the whole file; of the first line of a pipe, which cannot be read twice.
    pub(super) sha256: String,
}

impl Fingerprint {
    /// A pipe's, by its first line.
    pub(super) fn of_first_line(line: &[u8]) -> Self {
        Self { bytes: None, sha256: hex(&Sha256::digest(line)) }
    }
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Survey {
    /// The input's identity.
    pub(super) fingerprint: Fingerprint,
    /// Lines, blank ones too.
    pub(super) lines: u64,
    /// Those without a request.
    pub(super) blank: Bitmap,
    /// Ids that stand more than once.
    pub(super) duplicates: Duplicates,
}

impl Survey {
    /// Lines with a request.
    pub(super) fn requests(&self) -> u64 {
        self.lines - self.blank.count()
    }
}

/// Ids that stand more than once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Duplicates {
    /// Lines whose id an earlier line has.
    pub(super) lines: u64,
    /// The first of them: id, earlier line, line.
    pub(super) examples: Vec<(String, u64, u64)>,
    /// There were more ids than are looked at.
    pub(super) is_partial: bool,
}

/// Looks over a file; blocks.
pub(super) fn survey(source: &Source, limit: usize) -> Result<Survey> {
    let reader = Hashing { inner: source.open()?, digest: Sha256::new(), bytes: 0 };
    let mut lines = Lines::new(BufReader::with_capacity(BUFFER, reader), limit);
    let mut blank = Bitmap::default();
    let mut ids = Ids::default();
    let mut count = 0;
    while let Some(line) = lines.next_line()? {
        count = line.number + 1;
        match &line.text {
            Text::Blank => {
                blank.set(line.number);
            }
            Text::Some(text) => ids.add(text),
            Text::TooLong(_) => {}
        }
    }
    let Hashing { digest, bytes, .. } = lines.into_inner().into_inner();
    let fingerprint = Fingerprint { bytes: Some(bytes), sha256: hex(&digest.finalize()) };
    let is_partial = ids.is_partial;
    let mut duplicates = match ids.duplicates() {
        hashes if hashes.is_empty() => Duplicates::default(),
        hashes => name_duplicates(Lines::new(source.open()?, limit), hashes)?,
    };
    duplicates.is_partial = is_partial;
    Ok(Survey { fingerprint, lines: count, blank, duplicates })
}

#[derive(Deserialize)]
struct Id<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
}

/// The id of a line, where it has one.
pub(super) fn custom_id(text: &[u8]) -> Option<Cow<'_, str>> {
    serde_json::from_slice::<Id<'_>>(text).ok().map(|line| line.custom_id)
}

/// The ids' hashes; ids themselves would not fit.
#[derive(Default)]
struct Ids {
    hashes: Vec<u64>,
    is_partial: bool,
}

impl Ids {
    fn add(&mut self, text: &[u8]) {
        if self.hashes.len() >= MAX_IDS {
            self.is_partial = true;
        } else if let Some(id) = custom_id(text) {
            self.hashes.push(hash(&id));
        }
    }

    /// Hashes that stand more than once, with no line yet.
    fn duplicates(mut self) -> HashMap<u64, Option<u64>> {
        self.hashes.sort_unstable();
        let twice = self.hashes.windows(2).filter(|pair| pair[0] == pair[1]);
        twice.map(|pair| (pair[0], None)).collect()
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// Two ids with the same 64 bits would be named by mistake: among a million, once in 30 million inputs.
fn name_duplicates<R: BufRead>(
    mut lines: Lines<R>,
    mut first: HashMap<u64, Option<u64>>,
) -> Result<Duplicates> {
    let mut duplicates = Duplicates::default();
    while let Some(Line { number, text }) = lines.next_line()? {
        let Text::Some(text) = text else { continue };
        let Some(id) = custom_id(&text) else { continue };
        match first.get_mut(&hash(&id)) {
            None => {}
            Some(seen @ None) => *seen = Some(number),
            Some(Some(earlier)) => {
                duplicates.lines += 1;
                if duplicates.examples.len() < EXAMPLES {
                    duplicates.examples.push((id.into_owned(), *earlier, number));
                }
            }
        }
    }
    Ok(duplicates)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A reader that hashes what it reads.
struct Hashing<R> {
    inner: R,
    digest: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey_of(text: &str) -> Survey {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        survey(&Source::new(file.path()).unwrap(), 1000).unwrap()
    }

    #[test]
    fn duplicates_are_named_with_their_lines() {
        let seen =
            survey_of("{\"custom_id\":\"a\"}\n{\"custom_id\":\"b\"}\n\n{\"custom_id\":\"a\",\"x\":1}\nbad\n");
        assert_eq!((seen.lines, seen.requests()), (5, 4));
        assert_eq!(seen.duplicates.lines, 1);
        assert_eq!(seen.duplicates.examples, [("a".to_owned(), 0, 3)]);
        assert!(seen.blank.contains(2));
    }

    #[test]
    fn the_fingerprint_is_that_of_the_whole_file() {
        let one = survey_of("{}\n{}\n").fingerprint;
        assert_eq!(one.bytes, Some(6));
        // `printf '{}\n{}\n' | sha256sum`
        assert!(one.sha256.starts_with("3b00ba5361676a0a"), "{}", one.sha256);
        assert_ne!(one, survey_of("{}\n{ }\n").fingerprint);
        assert_eq!(one, survey_of("{}\n{}\n").fingerprint);
    }
}
