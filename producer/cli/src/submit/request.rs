//! A line of the input as a request.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use millrace_common::protocol::codec::{Limits, decode_request};
use millrace_producer::{Code, Request};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::survey::custom_id;

/// The longest `custom_id` in bytes: it travels with the request in a property of at most 255, with the line's number.
pub(super) const MAX_CUSTOM_ID: usize = 200;
/// The longest deadline, as the configuration allows it.
const MAX_DEADLINE_MS: u64 = 30 * 86_400_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputLine<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tier: Option<Cow<'a, str>>,
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    deadline_ms: Option<u64>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// What lines get that do not say it themselves.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    /// The model.
    pub(super) model: Option<String>,
    /// The tier; none is the configuration's.
    pub(super) tier: Option<String>,
    /// The version; none is the newest.
    pub(super) version: Option<u64>,
    /// The deadline.
    pub(super) deadline: Duration,
    /// Tensors as JSON.
    pub(super) is_json: bool,
    /// Whether degraded answers are refused.
    pub(super) refuses_degraded: bool,
    /// Bounds on bodies.
    pub(super) limits: Limits,
}

/// A line ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// The caller's id of it.
    pub(super) custom_id: String,
    /// The request, without deadline.
    pub(super) request: Request,
    /// How long its result is worth waiting for.
    pub(super) deadline: Duration,
}

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// The caller's id, where it can be read.
    pub(super) custom_id: Option<String>,
    /// Why.
    pub(super) code: Code,
    /// Why, for people.
    pub(super) message: String,
}

/// Reads a line.
pub(super) fn prepare(number: u64, text: &[u8], defaults: &Defaults) -> Result<Prepared, Invalid> {
    let invalid = |message: String| Invalid {
        custom_id: custom_id(text).filter(|id| id.len() <= MAX_CUSTOM_ID).map(Cow::into_owned),
        code: Code::InvalidInput,
        message,
    };
    let line: InputLine<'_> =
        serde_json::from_slice(text).map_err(|error| invalid(format!("not a request line: {error}")))?;
    if !(1..=MAX_CUSTOM_ID).contains(&line.custom_id.len()) {
        return Err(invalid(format!(
            "`custom_id` has {} bytes: use 1 to {MAX_CUSTOM_ID}",
            line.custom_id.len()
        )));
    }
    let Some(model) = line.model.as_deref().or(defaults.model.as_deref()) else {
        return Err(invalid("no model: name it in the line (`model`) or with --model".to_owned()));
    };
    let deadline = match line.deadline_ms {
        None => defaults.deadline,
        Some(ms @ 1..=MAX_DEADLINE_MS) => Duration::from_millis(ms),
        Some(ms) => {
            return Err(invalid(format!("`deadline_ms` is {ms}: use 1 to {MAX_DEADLINE_MS}")));
        }
    };
    let body = Bytes::copy_from_slice(line.body.get().as_bytes());
    let body = decode_request(&body, None, &defaults.limits)
        .map_err(|error| invalid(format!("`body` is not an inference request: {error}")))?;
    let mut request =
        Request::from_body(model, body).correlation_id(Correlation::write(number, &line.custom_id));
    if let Some(tier) = line.tier.as_deref().or(defaults.tier.as_deref()) {
        request = request.tier(tier);
    }
    if let Some(version) = line.version.or(defaults.version) {
        request = request.version(version);
    }
    if defaults.refuses_degraded {
        request = request.refuse_degraded();
    }
    if defaults.is_json {
        request = request.json();
    }
    Ok(Prepared { custom_id: line.custom_id.into_owned(), request, deadline })
}

/// A line longer than any request may be.
pub(super) fn too_long(beginning: &[u8], limit: usize) -> Invalid {
    // The line is cut, so that it is no JSON any more; an id at its very beginning can still be read.
    let id = || {
        let rest = beginning.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"custom_id\"")?;
        let rest = rest.trim_ascii_start().strip_prefix(b":")?;
        serde_json::Deserializer::from_slice(rest).into_iter::<String>().next()?.ok()
    };
    Invalid {
        custom_id: id().filter(|id| id.len() <= MAX_CUSTOM_ID),
        code: Code::TooLarge,
        message: format!("the line is longer than {limit} bytes (limits.max_body_bytes and some more)"),
    }
}

/// What a reply says about the line that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Correlation {
    /// The line's number.
    pub(super) line: u64,
    /// The caller's id.
    pub(super) custom_id: String,
}

impl Correlation {
    fn write(line: u64, custom_id: &str) -> String {
        format!("{line}:{custom_id}")
    }

    /// Reads it back; `None` for what this command has not written.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (line, custom_id) = text.split_once(':')?;
        Some(Self { line: line.parse().ok()?, custom_id: custom_id.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults {
            model: None,
            tier: None,
            version: None,
            deadline: Duration::from_secs(1),
            is_json: false,
            refuses_degraded: false,
            limits: Limits::default(),
        }
    }

    const BODY: &str = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#;

    #[test]
    fn a_line_overrides_the_defaults() {
        let text = format!(r#"{{"custom_id":"a\n1","model":"m","deadline_ms":5,"body":{BODY}}}"#);
        let prepared = prepare(7, text.as_bytes(), &defaults()).unwrap();
        assert_eq!(prepared.deadline, Duration::from_millis(5));
        assert_eq!(prepared.custom_id, "a\n1");
        let text = format!(r#"{{"custom_id":"a","body":{BODY}}}"#);
        let with = Defaults { model: Some("m".into()), ..defaults() };
        assert_eq!(prepare(7, text.as_bytes(), &with).unwrap().deadline, Duration::from_secs(1));
    }

    #[test]
    fn invalid_lines_say_why_and_keep_their_id() {
        let long = "x".repeat(201);
        for (text, id, message) in [
            ("nonsense".to_owned(), None, "not a request line"),
            (format!(r#"{{"custom_id":"a","body":{BODY}}}"#), Some("a"), "--model"),
            (r#"{"custom_id":"a","model":"m"}"#.to_owned(), Some("a"), "body"),
            (format!(r#"{{"custom_id":"a","models":"m","body":{BODY}}}"#), Some("a"), "models"),
            (format!(r#"{{"custom_id":"{long}","model":"m","body":{BODY}}}"#), None, "1 to 200"),
            (format!(r#"{{"custom_id":"","model":"m","body":{BODY}}}"#), Some(""), "1 to 200"),
            (
                r#"{"custom_id":"a","model":"m","body":{"inputs":3}}"#.to_owned(),
                Some("a"),
                "inference request",
            ),
            (
                format!(r#"{{"custom_id":"a","model":"m","deadline_ms":0,"body":{BODY}}}"#),
                Some("a"),
                "deadline",
            ),
        ] {
            let invalid = prepare(0, text.as_bytes(), &defaults()).unwrap_err();
            assert_eq!(invalid.custom_id.as_deref(), id, "{text}");
            assert!(invalid.message.contains(message), "{text}: {}", invalid.message);
        }
        let invalid = too_long(br#"{ "custom_id" : "a", "body": [1,2,3"#, 10);
        assert_eq!((invalid.custom_id.as_deref(), invalid.code), (Some("a"), Code::TooLarge));
        assert_eq!(too_long(b"[[[[", 10).custom_id, None);
    }

    #[test]
    fn the_correlation_survives() {
        for id in ["a", "a:b", "", "7:"] {
            let read = Correlation::read(&Correlation::write(12, id)).unwrap();
            assert_eq!((read.line, read.custom_id.as_str()), (12, id));
        }
        assert_eq!(Correlation::read("a-3"), None);
        assert!(Correlation::write(u64::MAX, &"x".repeat(MAX_CUSTOM_ID)).len() <= 255);
    }
}
