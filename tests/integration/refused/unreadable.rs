//! Properties that no client library would write.

use crate::unreadable::{nested, sized, table};

/// One message by hand.
pub(super) struct Raw {
    pub(super) name: &'static str,
    /// Which properties are there, from the first in bit 15 on.
    pub(super) flags: u16,
    pub(super) properties: Vec<u8>,
    pub(super) reason: &'static str,
}

const NOT_TEXT: [u8; 2] = [1, 0xff];

pub(super) fn cases() -> Vec<Raw> {
    let unreadable = |name, bit: u16, properties: Vec<u8>| Raw {
        name,
        flags: 1 << bit,
        properties,
        reason: "unreadable_properties",
    };
    let mut cases: Vec<Raw> = [
        ("content_type", 15),
        ("content_encoding", 14),
        ("correlation_id", 10),
        ("reply_to", 9),
        ("message_id", 7),
        ("type", 5),
        ("app_id", 3),
    ]
    .map(|(name, bit)| unreadable(name, bit, NOT_TEXT.to_vec()))
    .into();
    const HEADERS: u16 = 13;
    cases.push(unreadable("a header's name", HEADERS, sized(&[1, 0xff, b'V'])));
    cases.push(unreadable("nine lists in each other", HEADERS, table(&nested(9))));
    cases.push(unreadable("20,000 lists in each other", HEADERS, table(&nested(20_000))));
    cases.push(Raw {
        reason: "oversized_headers",
        ..unreadable("a long header", HEADERS, table(&[b"S", &sized(&[b'x'; 100_000])[..]].concat()))
    });
    cases
}
