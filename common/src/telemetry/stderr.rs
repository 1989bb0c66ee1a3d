//! Log lines to an output that may have no reader any more: none waits, and those that are lost are counted and reported.
//!
//! A collector that hangs must not hold up whoever serves. Lines are written where they arise, not by a thread behind a channel: a
//! process that is killed or aborts in native code has said all that it had to say.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What a pipe takes at once where it takes anything (`PIPE_BUF` on Linux). Others that write into the same pipe may be faster between the
/// look and the write; each of our processes has its own.
const PIECE: usize = 4096;
/// Room for bursts while a reader is slow: the most that a pipe may have without privileges.
const PIPE_BYTES: i32 = 1 << 20;

/// An output for lines.
pub(super) struct Lines<W> {
    output: W,
    /// What to say of so many lost lines.
    report: fn(u64) -> String,
    lost: u64,
    /// The last line was not written to its end.
    is_cut: bool,
}

impl<W: Write + AsFd> Lines<W> {
    pub(super) fn to(output: W, report: fn(u64) -> String) -> Self {
        // No pipe, or one that is as large as this user may have.
        let _ = fcntl(output.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Self { output, report, lost: 0, is_cut: false }
    }

    fn line(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let end = if self.is_cut { "\n" } else { "" };
            let report = format!("{end}{}\n", (self.report)(self.lost));
            if !self.put(report.as_bytes()) {
                self.lost += 1;
                return;
            }
            (self.lost, self.is_cut) = (0, false);
        }
        self.lost += u64::from(!self.put(line));
    }

    /// Whether all of it was taken.
    fn put(&mut self, bytes: &[u8]) -> bool {
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            if !self.takes_more() || self.output.write_all(piece).is_err() {
                self.is_cut |= number > 0;
                return false;
            }
        }
        true
    }

    fn takes_more(&self) -> bool {
        let mut looks = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
        let found = poll(&mut looks, PollTimeout::ZERO);
        found.is_ok() && looks[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
    }
}

/// Takes whole lines, one a call, as the formatter writes them.
impl<W: Write + AsFd> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, PipeWriter, pipe};

    use super::*;

    fn lines(output: PipeWriter) -> Lines<PipeWriter> {
        Lines::to(output, |lost| format!("lost {lost}"))
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_lost_is_reported_where_it_is_missing() {
        for length in [40, 5_000] {
            let (reader, writer) = pipe().unwrap();
            let mut lines = lines(writer);
            let mut written = 0;
            while lines.lost == 0 {
                let line = format!("{written:0length$}\n");
                lines.write_all(line.as_bytes()).unwrap();
                written += 1;
                assert!(written < 100_000, "it is never full");
            }
            lines.write_all(b"lost as well\n").unwrap();
            assert_eq!(lines.lost, 2);
            let mut read = BufReader::new(reader).lines().map(Result::unwrap);
            let mut first: Vec<_> = read.by_ref().take(written / 2).collect();
            lines.write_all(b"heard again\n").unwrap();
            drop(lines);
            first.extend(read);
            let whole = first.iter().filter(|line| line.len() == length).count();
            assert_eq!(whole, written - 1, "of {length}");
            assert_eq!(first[first.len() - 2..], ["lost 2", "heard again"], "of {length}");
        }
    }

    #[test]
    fn whoever_is_gone_is_no_error() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut lines = lines(writer);
        lines.write_all(b"unheard\n").unwrap();
        assert_eq!(lines.lost, 1);
    }
}
