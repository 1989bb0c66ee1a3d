//! A content header's payload, as AMQP 0-9-1 lays it out: class, weight, body size, flags, then the properties flagged.
//! Plain code.

use std::ops::Range;

use super::UNREADABLE;

/// Tables and arrays inside each other. `x-death`, the broker's own history, takes three.
const MAX_DEPTH: usize = 8;
const CLASS_WEIGHT_AND_SIZE: usize = 12;
const HEADERS: u16 = 1 << 13;

/// Kinds of property in the order of their flags, from bit 15 down.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Table,
    Octet,
    Timestamp,
}

const PROPERTIES: [Kind; 14] = {
    use Kind::{Octet, Table, Text, Timestamp};
    // content_type, content_encoding, headers, delivery_mode, priority, correlation_id, reply_to, expiration, message_id,
    // timestamp, type, user_id, app_id, cluster_id
    [Text, Text, Table, Octet, Octet, Text, Text, Text, Text, Timestamp, Text, Text, Text, Text]
};

/// A payload to pass on instead; `None` where the one given is in order, and no longer than `limit`.
pub(super) fn replacement(payload: &[u8], limit: usize) -> Option<Vec<u8>> {
    let reason = if payload.len() > limit {
        format!("{} bytes of properties, the limit is {limit}", payload.len())
    } else {
        Walk { bytes: payload, at: 0 }.properties().err()?.to_owned()
    };
    let mut fresh = payload.get(..CLASS_WEIGHT_AND_SIZE).unwrap_or(&[0; CLASS_WEIGHT_AND_SIZE]).to_vec();
    fresh.extend_from_slice(&HEADERS.to_be_bytes());
    let entry_bytes = 1 + UNREADABLE.len() + 1 + 4 + reason.len();
    fresh.extend_from_slice(&u32::try_from(entry_bytes).unwrap_or(0).to_be_bytes());
    fresh.push(u8::try_from(UNREADABLE.len()).unwrap_or(0));
    fresh.extend_from_slice(UNREADABLE.as_bytes());
    fresh.push(b'S');
    fresh.extend_from_slice(&u32::try_from(reason.len()).unwrap_or(0).to_be_bytes());
    fresh.extend_from_slice(reason.as_bytes());
    Some(fresh)
}

/// Replaces a short string at the start of `bytes` that is not UTF-8 by question marks. Returns what follows it.
pub(super) fn tame_short(bytes: &mut [u8]) -> Option<&mut [u8]> {
    let (&mut length, rest) = bytes.split_first_mut()?;
    if usize::from(length) > rest.len() {
        return None;
    }
    let (text, rest) = rest.split_at_mut(usize::from(length));
    if std::str::from_utf8(text).is_err() {
        text.fill(b'?');
    }
    Some(rest)
}

type Checked<T> = Result<T, &'static str>;

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn properties(&mut self) -> Checked<()> {
        self.skip(CLASS_WEIGHT_AND_SIZE)?;
        let flags = self.take(2)?;
        let flags = u16::from_be_bytes([flags[0], flags[1]]);
        if flags & 0b11 != 0 {
            return Err("unknown property flags");
        }
        for (index, kind) in PROPERTIES.iter().enumerate() {
            if flags & (1 << (15 - index)) == 0 {
                continue;
            }
            match kind {
                Kind::Text => self.short_string()?,
                Kind::Table => {
                    let range = self.sized()?;
                    self.table(range, MAX_DEPTH)?;
                }
                Kind::Octet => self.skip(1)?,
                Kind::Timestamp => self.skip(8)?,
            }
        }
        if self.at == self.bytes.len() { Ok(()) } else { Err("bytes behind the last property") }
    }

    fn take(&mut self, count: usize) -> Checked<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or("a length that overflows")?;
        let taken = self.bytes.get(self.at..end).ok_or("properties that end early")?;
        self.at = end;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Checked<()> {
        self.take(count).map(drop)
    }

    fn short_string(&mut self) -> Checked<()> {
        let length = self.take(1)?[0];
        let text = self.take(length.into())?;
        std::str::from_utf8(text).map(drop).map_err(|_| "text that is not UTF-8")
    }

    /// A 32-bit length and as many bytes; returns where they lie.
    fn sized(&mut self) -> Checked<Range<usize>> {
        let length = self.take(4)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        let start = self.at;
        self.skip(usize::try_from(length).map_err(|_| "a length that overflows")?)?;
        Ok(start..self.at)
    }

    fn inner(&self, range: Range<usize>) -> Walk<'a> {
        Walk { bytes: &self.bytes[..range.end], at: range.start }
    }

    fn table(&self, range: Range<usize>, depth: usize) -> Checked<()> {
        let mut entries = self.inner(range);
        while entries.at < entries.bytes.len() {
            entries.short_string()?;
            entries.value(depth)?;
        }
        Ok(())
    }

    fn array(&self, range: Range<usize>, depth: usize) -> Checked<()> {
        let mut values = self.inner(range);
        while values.at < values.bytes.len() {
            values.value(depth)?;
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Checked<()> {
        match self.take(1)?[0] {
            b'V' => Ok(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            b'S' | b'x' => self.sized().map(drop),
            kind @ (b'A' | b'F') => {
                let range = self.sized()?;
                let depth = depth.checked_sub(1).ok_or("headers nested too deep")?;
                if kind == b'A' { self.array(range, depth) } else { self.table(range, depth) }
            }
            _ => Err("a header of an unknown type"),
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldArray, FieldTable, parsing::parse_field_table};
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64 << 10;

    fn payload(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        payload.extend_from_slice(&flags.to_be_bytes());
        payload.extend_from_slice(properties);
        payload
    }

    fn table(entries: &[u8]) -> Vec<u8> {
        [&u32::try_from(entries.len()).unwrap().to_be_bytes(), entries].concat()
    }

    /// What the replacement says, read by the client library.
    fn reason(replaced: &[u8]) -> String {
        assert_eq!(replaced[..12], [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], "the body's size stays");
        assert_eq!(replaced[12..14], HEADERS.to_be_bytes());
        let (rest, table) = parse_field_table(&replaced[14..]).unwrap();
        assert!(rest.is_empty());
        match table.inner().get(UNREADABLE) {
            Some(AMQPValue::LongString(reason)) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_library_writes_passes() {
        let mut headers = FieldTable::default();
        let mut death = FieldTable::default();
        death.insert("count".into(), AMQPValue::LongLongInt(1));
        death.insert(
            "routing-keys".into(),
            AMQPValue::FieldArray(vec![AMQPValue::LongString("k".into())].into()),
        );
        let mut deaths = FieldArray::default();
        deaths.push(AMQPValue::FieldTable(death));
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
        for value in [
            AMQPValue::Boolean(true),
            AMQPValue::ShortShortInt(-1),
            AMQPValue::ShortShortUInt(1),
            AMQPValue::ShortInt(-1),
            AMQPValue::ShortUInt(1),
            AMQPValue::LongInt(-1),
            AMQPValue::LongUInt(1),
            AMQPValue::LongLongInt(-1),
            AMQPValue::Float(1.0),
            AMQPValue::Double(1.0),
            AMQPValue::Timestamp(1),
            AMQPValue::ByteArray(vec![255, 0].into()),
            AMQPValue::Void,
        ] {
            headers.insert(format!("{value:?}").into(), value);
        }
        let properties = BasicProperties::default()
            .with_content_type("t".into())
            .with_headers(headers)
            .with_delivery_mode(2)
            .with_priority(5)
            .with_message_id("ü".into())
            .with_timestamp(7)
            .with_cluster_id("c".into());
        let bytes = written(&properties);
        let whole = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], &bytes[..]].concat();
        assert_eq!(replacement(&whole, LIMIT), None);
    }

    /// Flags and properties as the client library writes them.
    fn written(properties: &BasicProperties) -> Vec<u8> {
        let serialized = lapin::protocol::basic::gen_properties(properties)(Vec::new().into()).unwrap();
        serialized.into_inner().0
    }

    #[test]
    fn what_would_end_the_library_is_replaced() {
        let nested =
            |depth: usize| (0..depth).fold(vec![b'V'], |inner, _| [b"A", &table(&inner)[..]].concat());
        let header = |value: &[u8]| payload(HEADERS, &table(&[&[1, b'h'], value].concat()));
        assert_eq!(replacement(&header(&nested(MAX_DEPTH)), LIMIT), None);
        for (bad, expected) in [
            (payload(1 << 10, &[1, 0xff]), "text that is not UTF-8"),
            (payload(HEADERS, &table(&[1, 0xff, b'V'])), "text that is not UTF-8"),
            (header(&nested(MAX_DEPTH + 1)), "headers nested too deep"),
            (header(&nested(10_000)), "headers nested too deep"),
            (header(b"?"), "a header of an unknown type"),
            (header(&[b'S', 0xff, 0xff, 0xff, 0xff]), "properties that end early"),
            (payload(HEADERS, &[0xff; 4]), "properties that end early"),
            (payload(1, &[]), "unknown property flags"),
            (payload(0, &[0]), "bytes behind the last property"),
            (payload(1 << 15, &[9, b'x']), "properties that end early"),
            (
                header(&[&[b'x', 0, 1, 0, 0], &[0; 1 << 16][..]].concat()),
                "65561 bytes of properties, the limit is 65536",
            ),
        ] {
            assert_eq!(reason(&replacement(&bad, LIMIT).unwrap()), expected);
        }
        assert!(replacement(&[], LIMIT).is_some());
    }

    #[test]
    fn routing_keys_become_text_of_the_same_length() {
        let mut bytes = [2, 0xff, b'a', 1, b'b', 7];
        let rest = tame_short(&mut bytes).unwrap();
        assert_eq!(tame_short(rest).map(|rest| rest.len()), Some(1));
        assert_eq!(bytes, [2, b'?', b'?', 1, b'b', 7]);
        assert!(tame_short(&mut [3, b'a']).is_none() && tame_short(&mut []).is_none());
    }

    proptest! {
        /// Whatever the bytes, the library can parse the headers of what is passed on, and a replacement needs no other.
        #[test]
        fn what_is_passed_on_can_be_parsed(flags in any::<u16>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let given = payload(flags, &bytes);
            if let Some(replaced) = replacement(&given, LIMIT) {
                prop_assert_eq!(replacement(&replaced, LIMIT), None);
                reason(&replaced);
            }
        }

        #[test]
        fn tables_that_pass_can_be_parsed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let given = payload(HEADERS, &table(&bytes));
            if replacement(&given, LIMIT).is_none() {
                prop_assert!(parse_field_table(&given[14..]).is_ok());
            }
        }
    }
}
