//! Message properties and headers. Reading trusts nothing: a header of an unexpected type is an error, not a default.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// The longest value of a property in bytes; AMQP's short string.
pub const MAX_PROPERTY_BYTES: usize = 255;

/// Headers that are not published again: copies to other queues, and a history that a client may forge.
const NOT_REPUBLISHED: [&str; 9] = [
    "CC",
    "BCC",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
];

/// Headers published again, at most; longer ones are left out. What is added to them must still fit one frame.
const MAX_REPUBLISHED_BYTES: usize = 32 << 10;

/// The properties of a message, headers included.
#[derive(Clone, Debug, Default)]
pub struct Properties {
    basic: BasicProperties,
    /// Headers set here; `None` while they are those in `basic`, as received.
    headers: Option<FieldTable>,
}

/// A header whose value has a type or form that its meaning does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header `{name}` is not {expected}")]
pub struct OddHeader {
    /// Header name.
    pub name: &'static str,
    /// What it must be.
    pub expected: &'static str,
}

macro_rules! text_properties {
    ($($(#[$doc:meta])* $get:ident, $with:ident;)+) => {
        $(
            $(#[$doc])*
            pub fn $get(&self) -> Option<&str> {
                self.basic.$get().as_ref().map(ShortString::as_str)
            }

            /// Sets the property of the same name; a value above [`MAX_PROPERTY_BYTES`] is left out.
            #[must_use]
            pub fn $with(mut self, value: &str) -> Self {
                if let Ok(value) = ShortString::try_new(value) {
                    self.basic = self.basic.$with(value);
                }
                self
            }
        )+
    };
}

impl Properties {
    /// Properties without any value.
    pub fn new() -> Self {
        Self::default()
    }

    /// Properties of a message that survives a broker restart in a durable queue (`delivery_mode` 2).
    pub fn persistent() -> Self {
        Self { basic: BasicProperties::default().with_delivery_mode(2), headers: None }
    }

    /// As the client library hands them over.
    pub fn from_lapin(basic: BasicProperties) -> Self {
        Self { basic, headers: None }
    }

    pub(super) fn into_lapin(self) -> BasicProperties {
        match self.headers {
            Some(headers) => self.basic.with_headers(headers),
            None => self.basic,
        }
    }

    fn headers(&self) -> Option<&FieldTable> {
        self.headers.as_ref().or(self.basic.headers().as_ref())
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.headers()?.inner().get(name)
    }

    fn headers_mut(&mut self) -> &mut FieldTable {
        self.headers.get_or_insert_with(|| self.basic.headers().clone().unwrap_or_default())
    }

    text_properties! {
        /// The message's identity.
        message_id, with_message_id;
        /// The caller's own id.
        correlation_id, with_correlation_id;
        /// Where the reply goes.
        reply_to, with_reply_to;
        /// Media type of the body.
        content_type, with_content_type;
        /// The user that the broker checked against the connection.
        user_id, with_user_id;
        /// Per-message time to live in milliseconds, as text.
        expiration, with_expiration;
        /// Name of the publishing application.
        app_id, with_app_id;
    }

    /// AMQP priority; bigger is more urgent.
    pub fn priority(&self) -> Option<u8> {
        *self.basic.priority()
    }

    /// Sets the AMQP priority.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.basic = self.basic.with_priority(priority);
        self
    }

    /// Bytes that names and values of the headers hold, about.
    pub fn header_bytes(&self) -> usize {
        self.headers().map_or(0, table_bytes)
    }

    /// Whether the header is present, whatever its value.
    pub fn has_header(&self, name: &str) -> bool {
        self.header(name).is_some()
    }

    /// A text header.
    ///
    /// # Errors
    /// [`OddHeader`] when it is present but not UTF-8 text.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>, OddHeader> {
        let odd = OddHeader { name, expected: "UTF-8 text" };
        match self.header(name) {
            None | Some(AMQPValue::Void) => Ok(None),
            Some(AMQPValue::LongString(text)) => {
                std::str::from_utf8(text.as_bytes()).map(Some).map_err(|_| odd)
            }
            Some(AMQPValue::ShortString(text)) => Ok(Some(text.as_str())),
            Some(AMQPValue::ByteArray(text)) => {
                std::str::from_utf8(text.as_slice()).map(Some).map_err(|_| odd)
            }
            Some(_) => Err(odd),
        }
    }

    /// A header that counts something: any AMQP integer type, or decimal text, since clients differ in what they send.
    ///
    /// # Errors
    /// [`OddHeader`] when it is present but not a number from 0 to 2^63 − 1.
    pub fn count(&self, name: &'static str) -> Result<Option<u64>, OddHeader> {
        let odd = OddHeader { name, expected: "a whole number from 0 up" };
        let number: i128 = match self.header(name) {
            None | Some(AMQPValue::Void) => return Ok(None),
            Some(AMQPValue::ShortShortInt(n)) => (*n).into(),
            Some(AMQPValue::ShortShortUInt(n)) => (*n).into(),
            Some(AMQPValue::ShortInt(n)) => (*n).into(),
            Some(AMQPValue::ShortUInt(n)) => (*n).into(),
            Some(AMQPValue::LongInt(n)) => (*n).into(),
            Some(AMQPValue::LongUInt(n)) => (*n).into(),
            Some(AMQPValue::LongLongInt(n)) => (*n).into(),
            Some(AMQPValue::Timestamp(n)) => (*n).into(),
            Some(AMQPValue::LongString(_) | AMQPValue::ShortString(_)) => {
                self.text(name)?.and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| odd.clone())?.into()
            }
            Some(_) => return Err(odd),
        };
        match i64::try_from(number) {
            Ok(number) if number >= 0 => Ok(Some(number.unsigned_abs())),
            _ => Err(odd),
        }
    }

    /// Sets a text header.
    #[must_use]
    pub fn with_text(mut self, name: &str, value: &str) -> Self {
        self.headers_mut().insert(name.into(), AMQPValue::LongString(value.into()));
        self
    }

    /// Sets a counting header, as AMQP's 64-bit integer; values above 2^63 − 1 become that.
    #[must_use]
    pub fn with_count(mut self, name: &str, value: u64) -> Self {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.headers_mut().insert(name.into(), AMQPValue::LongLongInt(value));
        self
    }

    /// Without these headers.
    #[must_use]
    pub fn without(mut self, names: &[&str]) -> Self {
        let headers = std::mem::take(self.headers_mut()).inner().clone();
        let kept = headers.into_iter().filter(|(name, _)| !names.contains(&name.as_str()));
        self.headers = Some(kept.collect::<std::collections::BTreeMap<_, _>>().into());
        self
    }

    /// The properties for publishing a received message again: persistent; without its expiration (that of the next
    /// queue counts), without `CC`, `BCC` (the broker would copy it) and `x-death` (history that a client may forge).
    #[must_use]
    pub fn for_republishing(&self) -> Self {
        let basic = &self.basic;
        let mut fresh = Self::persistent();
        macro_rules! keep {
            ($($get:ident, $with:ident;)+) => {$(
                if let Some(value) = basic.$get().clone() {
                    fresh.basic = fresh.basic.$with(value);
                }
            )+};
        }
        // `user_id` is not kept: the broker would close the channel of a publisher with another user.
        keep! {
            message_id, with_message_id;
            correlation_id, with_correlation_id;
            reply_to, with_reply_to;
            content_type, with_content_type;
            priority, with_priority;
            app_id, with_app_id;
        }
        let entries = self.headers().into_iter().flat_map(|headers| headers.inner());
        let mut bytes = 0;
        let kept = entries.filter(|(name, value)| {
            let size = name.as_str().len() + value_bytes(value);
            let is_kept = !NOT_REPUBLISHED.contains(&name.as_str()) && bytes + size <= MAX_REPUBLISHED_BYTES;
            bytes += if is_kept { size } else { 0 };
            is_kept
        });
        let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
        fresh.headers = Some(kept.collect::<std::collections::BTreeMap<_, _>>().into());
        fresh
    }
}

fn table_bytes(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| name.as_str().len() + value_bytes(value)).sum()
}

/// The guard bounds how deep tables and arrays lie in each other.
fn value_bytes(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldTable(table) => table_bytes(table),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(|value| 1 + value_bytes(value)).sum(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_in_many_forms() {
        for value in [
            AMQPValue::LongString("7".into()),
            AMQPValue::ShortShortInt(7),
            AMQPValue::LongUInt(7),
            AMQPValue::LongLongInt(7),
        ] {
            let mut headers = FieldTable::default();
            headers.insert("x-attempt".into(), value);
            let properties = Properties::from_lapin(BasicProperties::default().with_headers(headers));
            assert_eq!(properties.count("x-attempt"), Ok(Some(7)));
        }
        for value in [
            AMQPValue::LongString("-7".into()),
            AMQPValue::LongString("seven".into()),
            AMQPValue::LongInt(-7),
            AMQPValue::Double(7.0),
            AMQPValue::FieldTable(FieldTable::default()),
        ] {
            let mut headers = FieldTable::default();
            headers.insert("x-attempt".into(), value);
            let properties = Properties::from_lapin(BasicProperties::default().with_headers(headers));
            assert!(properties.count("x-attempt").is_err());
            assert!(
                properties.text("x-attempt").is_err()
                    || properties.text("x-attempt").is_ok_and(|t| t.is_some())
            );
        }
        assert_eq!(Properties::new().count("x-attempt"), Ok(None));
    }

    #[test]
    fn what_was_written_is_read() {
        let written =
            Properties::persistent().with_message_id("m").with_reply_to("r").with_count("x-attempt", 3);
        let read = Properties::from_lapin(written.into_lapin());
        assert_eq!((read.message_id(), read.reply_to()), (Some("m"), Some("r")));
        assert_eq!(read.count("x-attempt"), Ok(Some(3)));
    }

    #[test]
    fn republishing_drops_what_the_broker_would_act_on() {
        let properties = Properties::new()
            .with_message_id("m")
            .with_user_id("ann")
            .with_expiration("10")
            .with_text("CC", "x")
            .with_text("x-death", "x")
            .with_text("x-model-version", "2");
        let again = properties.for_republishing();
        assert_eq!(again.message_id(), Some("m"));
        assert_eq!((again.user_id(), again.expiration()), (None, None));
        assert!(!again.has_header("CC") && !again.has_header("x-death"));
        assert_eq!(again.text("x-model-version"), Ok(Some("2")));
        let long = properties.with_text("a-long-one", &"x".repeat(MAX_REPUBLISHED_BYTES));
        let again = long.for_republishing();
        assert!(!again.has_header("a-long-one") && again.has_header("x-model-version"));
    }
}
