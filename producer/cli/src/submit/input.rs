//! The input file, line by line, in bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Result};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::bitmap::Bitmap;

/// Lines handed over together, to pay for the channel once: this many, or this many bytes.
const CHUNK_LINES: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;
const BUFFER: usize = 256 << 10;

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A regular file: can be read twice.
    File(PathBuf),
    /// A named pipe or a device: can be read once.
    Pipe(PathBuf),
    /// Standard input.
    Stdin,
}

impl Source {
    /// `-` is standard input.
    pub(super) fn new(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdin);
        }
        let kind = if std::fs::metadata(path)?.is_file() { Self::File } else { Self::Pipe };
        Ok(kind(path.to_owned()))
    }

    /// Opens it at its beginning.
    pub(super) fn open(&self) -> Result<Box<dyn BufRead + Send>> {
        Ok(match self {
            Self::File(path) | Self::Pipe(path) => {
                Box::new(BufReader::with_capacity(BUFFER, File::open(path)?))
            }
            Self::Stdin => Box::new(BufReader::with_capacity(BUFFER, std::io::stdin())),
        })
    }
}

/// A line of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number, from 0; blank lines count.
    pub(super) number: u64,
    /// What it says, without the line's end.
    pub(super) text: Text,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// Nothing but white space: no request.
    Blank,
    /// Something.
    Some(Vec<u8>),
    /// More than the limit; the beginning is kept, for its id.
    TooLong(Vec<u8>),
}

/// Reads lines of at most `limit` bytes.
pub(super) struct Lines<R> {
    reader: R,
    limit: usize,
    next: u64,
    position: u64,
    is_ended: bool,
}

/// How much is kept of a line that is too long.
const KEPT: usize = 4096;

impl<R: BufRead> Lines<R> {
    /// Starts at line 0 of the reader.
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Self { reader, limit, next: 0, position: 0, is_ended: true }
    }

    /// Bytes read so far: where the last line ended.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Whether the last line had its end, or the input just stopped.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The reader, where the last line ended.
    pub(super) fn into_inner(self) -> R {
        self.reader
    }

    /// The next line; `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<Line>> {
        let mut text = Vec::new();
        let most = self.limit as u64 + 2; // the line's end
        let read = self.reader.by_ref().take(most).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(None);
        }
        let number = self.next;
        self.next += 1;
        let is_whole = text.ends_with(b"\n") || (text.len() as u64) < most;
        self.position += read as u64;
        self.is_ended = text.ends_with(b"\n");
        if !is_whole {
            self.position += self.reader.skip_until(b'\n')? as u64;
            self.is_ended = true;
        }
        while text.last().is_some_and(u8::is_ascii_whitespace) {
            text.pop();
        }
        if number == 0 && text.starts_with(b"\xef\xbb\xbf") {
            text.drain(..3);
        }
        let text = if !is_whole || text.len() > self.limit {
            text.truncate(KEPT);
            text.shrink_to_fit();
            Text::TooLong(text)
        } else if text.iter().all(u8::is_ascii_whitespace) {
            Text::Blank
        } else {
            Text::Some(text)
        };
        Ok(Some(Line { number, text }))
    }
}

/// An opened input, and lines of it that were read already.
pub(super) struct Input {
    /// What is still to be read.
    pub(super) lines: Lines<Box<dyn BufRead + Send>>,
    /// The first line with a request, where a pipe had to be read to know it.
    pub(super) first: Option<Line>,
    /// Whoever writes it may wait for answers before writing more: no line is held back for company.
    pub(super) may_pause: bool,
}

impl Input {
    /// At its beginning; lines of at most `limit` bytes.
    pub(super) fn open(source: &Source, limit: usize) -> Result<Self> {
        let may_pause = !matches!(source, Source::File(_));
        Ok(Self { lines: Lines::new(source.open()?, limit), first: None, may_pause })
    }

    /// Reads the first line that is not blank, and keeps it.
    pub(super) fn first(&mut self) -> Result<Option<&Line>> {
        while self.first.is_none() {
            match self.lines.next_line()? {
                None => return Ok(None),
                Some(line) if line.text == Text::Blank => {}
                line => self.first = line,
            }
        }
        Ok(self.first.as_ref())
    }

    fn next_line(&mut self) -> Result<Option<Line>> {
        match self.first.take() {
            None => self.lines.next_line(),
            first => Ok(first),
        }
    }

    /// Reads on a thread of its own, which may wait for a pipe for ever; skips blank lines and those `done`.
    pub(super) fn spawn(self, done: Bitmap) -> mpsc::Receiver<Result<Vec<Line>>> {
        // One chunk waits while the next is read.
        let (sender, receiver) = mpsc::channel(1);
        std::thread::spawn(move || read_all(self, &done, &sender));
        receiver
    }
}

fn read_all(mut input: Input, done: &Bitmap, sender: &mpsc::Sender<Result<Vec<Line>>>) {
    let chunk_lines = if input.may_pause { 1 } else { CHUNK_LINES };
    let mut chunk = Vec::new();
    let mut bytes = 0;
    loop {
        let line = match input.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                let _ = sender.blocking_send(Ok(chunk)).and_then(|()| sender.blocking_send(Err(error)));
                return;
            }
        };
        let (Text::Some(text) | Text::TooLong(text)) = &line.text else { continue };
        if done.contains(line.number) {
            continue;
        }
        bytes += text.len();
        chunk.push(line);
        if chunk.len() >= chunk_lines || bytes >= CHUNK_BYTES {
            bytes = 0;
            if sender.blocking_send(Ok(std::mem::take(&mut chunk))).is_err() {
                return;
            }
        }
    }
    let _ = sender.blocking_send(Ok(chunk));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], limit: usize) -> Vec<Line> {
        let mut lines = Lines::new(input, limit);
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    #[test]
    fn lines_are_numbered_blank_ones_too() {
        let read = lines(b"\xef\xbb\xbfa\r\n\n  \nb \nc", 10);
        let texts: Vec<_> = read.iter().map(|line| line.text.clone()).collect();
        let some = |text: &[u8]| Text::Some(text.to_vec());
        assert_eq!(texts, [some(b"a"), Text::Blank, Text::Blank, some(b"b"), some(b"c")]);
        assert!(read.iter().map(|line| line.number).eq(0..5));
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        for (end, length, fits) in
            [("\nx\n", 8, true), ("\r\nx", 8, true), ("", 8, true), ("\nx", 9, false), ("", 9, false)]
        {
            let read = lines(format!("{}{end}", "y".repeat(length)).as_bytes(), 8);
            assert_eq!(matches!(read[0].text, Text::Some(_)), fits, "{length} {end:?}");
        }
        let read = lines(format!("{}\nx\n", "y".repeat(100_000)).as_bytes(), 8);
        assert!(matches!(&read[0].text, Text::TooLong(kept) if kept.len() <= KEPT));
        assert_eq!(read[1], Line { number: 1, text: Text::Some(b"x".to_vec()) });
    }

    #[test]
    fn done_lines_are_skipped() {
        let mut done = Bitmap::default();
        for line in 0..150 {
            done.set(line);
        }
        let text: String = (0..300).map(|line| format!("{line}\n")).collect();
        let reader: Box<dyn BufRead + Send> = Box::new(std::io::Cursor::new(text.into_bytes()));
        let mut input = Input { lines: Lines::new(reader, 10), first: None, may_pause: false };
        assert_eq!(input.first().unwrap().map(|line| line.number), Some(0));
        let mut chunks = input.spawn(done);
        let mut numbers = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            numbers.extend(chunk.unwrap().into_iter().map(|line| line.number));
        }
        assert!(numbers.into_iter().eq(150..300));
    }
}
