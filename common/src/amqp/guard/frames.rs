//! Frames as they arrive, in pieces of any size. Plain code.

use super::header::{replacement, tame_short};

const HEAD: usize = 7;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const FRAME_END: u8 = 0xce;
/// Bytes of a frame around its payload.
const OVERHEAD: usize = 8;
/// The broker's default. Where it is configured without a limit, this one holds for content headers.
const DEFAULT_FRAME: usize = 128 << 10;
/// Longest frame that is looked into. No broker sends one: they keep the negotiated size, but for what they add themselves.
const MAX_FRAME: usize = 4 << 20;

/// Passes frames on; methods and content headers are looked into, bodies are not.
#[derive(Debug)]
pub struct Frames {
    /// The beginning of a frame that is looked into or whose kind is not known yet.
    held: Vec<u8>,
    /// Bytes left of a frame that is passed on as it is.
    passing: usize,
    is_open: bool,
    /// Longest payload that the client library takes, as negotiated.
    max_payload: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { held: Vec::new(), passing: 0, is_open: false, max_payload: DEFAULT_FRAME - OVERHEAD }
    }
}

impl Frames {
    /// Takes bytes from the broker, and appends to `out` what the client library may see of them.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (now, later) = bytes.split_at(self.passing.min(bytes.len()));
                out.extend_from_slice(now);
                self.passing -= now.len();
                bytes = later;
                continue;
            }
            let wanted = self.wanted() - self.held.len();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if now.len() == wanted {
                self.advance(out);
            }
        }
    }

    /// Whether the connection's handshake is complete.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Bytes to hold before anything is done: a frame's head, then all of it.
    fn wanted(&self) -> usize {
        if self.held.len() < HEAD { HEAD } else { HEAD + self.size() + 1 }
    }

    fn size(&self) -> usize {
        u32::from_be_bytes([self.held[3], self.held[4], self.held[5], self.held[6]]) as usize
    }

    fn advance(&mut self, out: &mut Vec<u8>) {
        let is_looked_into = matches!(self.held[0], METHOD | CONTENT_HEADER) && self.size() <= MAX_FRAME;
        if !is_looked_into {
            // A body, a heartbeat; or no AMQP at all ("AMQP" and a version, where the broker speaks another): the library's
            // business.
            self.passing = if self.held[0] == b'A' { usize::MAX } else { self.size() + 1 };
            out.append(&mut self.held);
        } else if self.held.len() > HEAD {
            self.look(out);
            self.held.clear();
        }
    }

    fn look(&mut self, out: &mut Vec<u8>) {
        let end = self.held.len() - 1;
        if self.held[0] == METHOD {
            self.watch_handshake(end);
            // What cannot be walked cannot be tamed, nor has a publisher any part in it.
            let _ = tame_method(&mut self.held[HEAD..end]);
            return out.extend_from_slice(&self.held);
        }
        let Some(payload) = replacement(&self.held[HEAD..end], self.max_payload) else {
            return out.extend_from_slice(&self.held);
        };
        out.extend_from_slice(&self.held[..3]);
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&payload);
        out.push(FRAME_END);
    }
}

impl Frames {
    fn watch_handshake(&mut self, end: usize) {
        match &self.held[HEAD..end] {
            // tune: channel_max, frame_max, heartbeat
            [0, 10, 0, 30, _, _, a, b, c, d, ..] => {
                let frame_max = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                if frame_max > OVERHEAD {
                    self.max_payload = frame_max - OVERHEAD;
                }
            }
            [0, 10, 0, 41, ..] => self.is_open = true,
            _ => {}
        }
    }
}

/// Makes the text of a delivery's, a return's or a fetched message's address UTF-8.
fn tame_method(payload: &mut [u8]) -> Option<()> {
    let (method, rest) = payload.split_at_mut_checked(4)?;
    let rest = match *method {
        // deliver: consumer tag, delivery tag, redelivered
        [0, 60, 0, 60] => tame_short(rest)?.get_mut(9..)?,
        // return: reply code, reply text
        [0, 60, 0, 50] => tame_short(rest.get_mut(2..)?)?,
        // get-ok: delivery tag, redelivered
        [0, 60, 0, 71] => rest.get_mut(9..)?,
        _ => return None,
    };
    let routing_key = tame_short(rest)?; // behind the exchange
    tame_short(routing_key).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(payload);
        frame.push(FRAME_END);
        frame
    }

    fn through(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut frames, mut out) = (Frames::default(), Vec::new());
        bytes.chunks(piece).for_each(|piece| frames.push(piece, &mut out));
        out
    }

    const GOOD_HEADER: [u8; 14] = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0];
    const BAD_HEADER: [u8; 16] = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 0, 1, 0xff];

    #[test]
    fn good_frames_pass_unchanged_in_pieces_of_any_size() {
        let bytes = [
            frame(METHOD, &[0, 10, 0, 41]),
            frame(CONTENT_HEADER, &GOOD_HEADER),
            frame(3, b"abc"),
            frame(3, &[]),
            frame(8, &[]),
            frame(METHOD, &[0, 60, 0, 60, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'e', 1, b'k']),
        ]
        .concat();
        for piece in 1..bytes.len() {
            assert_eq!(through(&bytes, piece), bytes);
        }
        let other_protocol = b"AMQP\x00\x00\x09\x01 and whatever comes".as_slice();
        assert_eq!(through(other_protocol, 3), other_protocol);
    }

    #[test]
    fn bad_text_in_addresses_and_bad_headers_do_not_pass() {
        let deliver = frame(METHOD, &[0, 60, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'e', 1, 0xff]);
        let bytes = [deliver, frame(CONTENT_HEADER, &BAD_HEADER), frame(3, b"abc")].concat();
        let out = through(&bytes, 5);
        assert!(out.windows(2).any(|pair| pair == [1, b'?']), "{out:?}");
        assert!(
            out.windows(super::super::UNREADABLE.len()).any(|w| w == super::super::UNREADABLE.as_bytes())
        );
        assert!(out.ends_with(&frame(3, b"abc")));
        assert!(!out.contains(&0xff));
    }

    proptest! {
        /// Arbitrary bytes never panic, are not held for ever beyond a frame, and how they are cut makes no difference.
        #[test]
        fn any_bytes_in_any_pieces(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
            prop_assert_eq!(through(&bytes, piece), through(&bytes, bytes.len().max(1)));
        }
    }
}
