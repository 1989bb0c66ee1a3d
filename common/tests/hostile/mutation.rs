//! Small changes to valid bodies.

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A way to change a body; positions are relative to its length.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mutation {
    FlipBit(Index, u8),
    Replace(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Repeat(Index, Index),
    Truncate(Index),
}

impl Mutation {
    /// Changes the body; an empty one stays as it is.
    pub(crate) fn apply(self, body: &mut Vec<u8>) {
        let length = body.len();
        if length == 0 {
            return;
        }
        match self {
            Self::FlipBit(at, bit) => body[at.index(length)] ^= 1 << bit,
            Self::Replace(at, byte) => body[at.index(length)] = byte,
            Self::Insert(at, byte) => body.insert(at.index(length + 1), byte),
            Self::Remove(at) => drop(body.remove(at.index(length))),
            Self::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let part = body[from.min(to)..from.max(to)].to_vec();
                body.splice(to..to, part);
            }
            Self::Truncate(at) => body.truncate(at.index(length)),
        }
    }
}

/// Any mutation.
pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    // Bytes that JSON gives a meaning, since others mostly make one and the same syntax error.
    let byte = || prop_oneof![select(&b"\"\\[]{},:0123456789-.eEtfn \x00\x7f\x80\xff"[..]), any::<u8>()];
    prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Mutation::FlipBit(at, bit)),
        (at(), byte()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        (at(), byte()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        at().prop_map(Mutation::Remove),
        (at(), at()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        at().prop_map(Mutation::Truncate),
    ]
}
