//! What each absent or odd property of a request means, as the wire contract says.
//!
//! AMQP types that only other clients send (floats, tables, timestamps) are in the unit tests of `amqp::properties`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use millrace_common::amqp::message::{MetaError, ReplyKey, ReplyMeta, RequestMeta, header};
use millrace_common::amqp::properties::Properties;
use millrace_common::protocol::status::Code;

/// The least a request must have.
fn request() -> Properties {
    Properties::new().with_message_id("m")
}

fn read(properties: &Properties) -> RequestMeta {
    RequestMeta::read(properties).unwrap()
}

/// Counting headers: their names, and how a read request shows them.
type Count = (&'static str, fn(&RequestMeta) -> Option<u64>);
const COUNTS: [Count; 5] = [
    (header::HEADER_LENGTH, |meta| meta.header_length.map(|length| length as u64)),
    (header::PUBLISHED_MS, |meta| meta.published_ms),
    (header::BUDGET_MS, |meta| meta.budget.map(|budget| u64::try_from(budget.as_millis()).unwrap())),
    (header::MODEL_VERSION, |meta| meta.model_version),
    (header::ATTEMPT, |meta| Some(meta.attempt.into())),
];

#[test]
fn everything_but_the_identity_may_be_absent() {
    let expected = RequestMeta {
        request_id: "m".into(),
        correlation_id: None,
        is_urgent: false,
        header_length: None,
        published_ms: None,
        budget: None,
        has_expiration: false,
        model_version: None,
        attempt: 0,
        user_id: None,
        claimed_tenant: None,
        accepts_degraded: true,
        replies_per_message: 1,
    };
    assert_eq!(read(&request()), expected);
    assert_eq!(expected.remaining(Duration::ZERO), None, "the tier's default holds");
}

#[test]
fn the_identity_is_the_message_id_else_the_correlation_id() {
    let properties = |message_id: Option<&str>, correlation_id: Option<&str>| {
        let properties = message_id.map_or(Properties::new(), |id| Properties::new().with_message_id(id));
        correlation_id.map_or(properties.clone(), |id| properties.with_correlation_id(id))
    };
    for (message_id, correlation_id, request_id) in [
        (Some("m"), None, "m"),
        (Some("m"), Some("c"), "m"),
        (None, Some("c"), "c"),
        (Some("not a uuid, \u{1f600}"), None, "not a uuid, \u{1f600}"),
    ] {
        let meta = read(&properties(message_id, correlation_id));
        assert_eq!(meta.request_id, request_id);
        assert_eq!(meta.correlation_id.as_deref(), correlation_id, "returned unchanged");
    }
    for (message_id, correlation_id) in [(None, None), (Some(""), None), (None, Some(""))] {
        assert_eq!(
            RequestMeta::read(&properties(message_id, correlation_id)),
            Err(MetaError::NoIdentity),
            "{message_id:?} {correlation_id:?}"
        );
    }
}

#[test]
fn counts_are_integers_or_decimal_text() {
    for (name, shown) in COUNTS {
        for number in [1, 2, 500, u64::from(u32::MAX)] {
            assert_eq!(shown(&read(&request().with_count(name, number))), Some(number), "{name}");
            let text = request().with_text(name, &number.to_string());
            assert_eq!(shown(&read(&text)), Some(number), "{name}");
        }
    }
}

#[test]
fn odd_counts_are_refused_by_name() {
    for (name, _) in COUNTS {
        for odd in [
            "",
            " 1",
            "1 ",
            "-1",
            "1.0",
            "1e3",
            "0x10",
            "soon",
            "latest",
            "٣",
            "9223372036854775808",
            "18446744073709551616",
        ] {
            let error = RequestMeta::read(&request().with_text(name, odd)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("header `{name}` is not a whole number from 0 up"),
                "{odd}"
            );
        }
    }
}

#[test]
fn zero_is_a_count_but_no_version() {
    for zero in
        [request().with_count(header::MODEL_VERSION, 0), request().with_text(header::MODEL_VERSION, "0")]
    {
        let error = RequestMeta::read(&zero).unwrap_err();
        assert_eq!(error.to_string(), "header `x-model-version` is not a version, a whole number from 1 up");
    }
    let meta = read(
        &request()
            .with_count(header::HEADER_LENGTH, 0)
            .with_count(header::PUBLISHED_MS, 0)
            .with_count(header::BUDGET_MS, 0)
            .with_count(header::ATTEMPT, 0),
    );
    assert_eq!((meta.header_length, meta.published_ms, meta.attempt), (Some(0), Some(0), 0));
    assert_eq!(
        meta.remaining(Duration::from_millis(1)),
        Some(Duration::ZERO),
        "a budget of nothing has run out"
    );
}

#[test]
fn the_largest_counts_are_held() {
    let most = i64::MAX.unsigned_abs();
    let meta = read(
        &request()
            .with_count(header::BUDGET_MS, u64::MAX)
            .with_count(header::ATTEMPT, 1 << 32)
            .with_count(header::HEADER_LENGTH, u64::MAX)
            .with_count(header::PUBLISHED_MS, u64::MAX),
    );
    assert_eq!(meta.budget, Some(Duration::from_millis(most)));
    assert_eq!(meta.attempt, u32::MAX, "never fewer attempts than said");
    assert_eq!(meta.header_length, Some(usize::try_from(most).unwrap()));
}

#[test]
fn five_and_above_is_urgent() {
    for priority in 0..=u8::MAX {
        assert_eq!(read(&request().with_priority(priority)).is_urgent, priority >= 5, "{priority}");
    }
}

#[test]
fn only_no_refuses_degraded_answers() {
    for (text, accepts) in
        [("no", false), ("yes", true), ("", true), ("NO", true), ("no ", true), ("false", true)]
    {
        let meta = read(&request().with_text(header::ACCEPT_DEGRADED, text));
        assert_eq!(meta.accepts_degraded, accepts, "{text:?}");
    }
    let error = RequestMeta::read(&request().with_count(header::ACCEPT_DEGRADED, 0)).unwrap_err();
    assert_eq!(error.to_string(), "header `x-accept-degraded` is not UTF-8 text");
}

#[test]
fn users_and_tenants_are_kept_apart() {
    let meta = read(&request().with_user_id("ann").with_text(header::TENANT, "acme"));
    assert_eq!((meta.user_id.as_deref(), meta.claimed_tenant.as_deref()), (Some("ann"), Some("acme")));
    let meta = read(&request().with_text(header::TENANT, "acme"));
    assert_eq!((meta.user_id, meta.claimed_tenant.as_deref()), (None, Some("acme")));
    let error = RequestMeta::read(&request().with_count(header::TENANT, 7)).unwrap_err();
    assert_eq!(error.to_string(), "header `x-tenant` is not UTF-8 text");
}

#[test]
fn what_the_body_or_unknown_headers_claim_changes_nothing() {
    let properties = request()
        .with_text("x-tier", "premium")
        .with_count("x-priority", 9)
        .with_text("x-unknown", "?")
        .with_content_type("text/plain")
        .with_app_id("app");
    assert_eq!(read(&properties), read(&request()));
}

#[test]
fn reply_keys_have_a_user_and_an_unguessable_part() {
    let token = |length| "aZ09_-".chars().cycle().take(length).collect::<String>();
    for (user, length, fits) in [
        ("ann", 22, true),
        ("a", 22, true),
        ("ann", 86, true),
        ("Ann_2-x@example.org", 43, true),
        ("region.eu.ann", 22, true),
        (&"u".repeat(64), 22, true),
        ("ann", 21, false),
        ("ann", 0, false),
        ("ann", 87, false),
        ("", 22, false),
        (&"u".repeat(65), 22, false),
        ("an n", 22, false),
        ("ann\n", 22, false),
        ("ann*", 22, false),
        ("#", 22, false),
        ("änn", 22, false),
        ("ann/x", 22, false),
    ] {
        let key = format!("{user}.{}", token(length));
        let parsed = ReplyKey::parse(&key);
        assert_eq!(parsed.is_ok(), fits, "{key:?}");
        if let Ok(parsed) = parsed {
            assert_eq!((parsed.user(), parsed.as_str()), (user, &*key));
        }
    }
    for character in ['=', '+', '/', '*', '#', ' ', '\0', '\n', 'é', ':'] {
        let key = format!("ann.{}{character}", token(24));
        assert!(ReplyKey::parse(&key).is_err(), "{key:?}");
    }
    for other in [
        "",
        ".",
        &token(40),
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA2NzQ3NzQ1AAAB2gAAAAA=.u8Q==",
        "millrace.request.digits.premium",
    ] {
        assert!(ReplyKey::parse(other).is_err(), "{other:?}");
    }
}

#[test]
fn fresh_reply_keys_differ_and_pass() {
    let keys: std::collections::HashSet<_> =
        (0..100).map(|_| ReplyKey::random("ann").unwrap().as_str().to_owned()).collect();
    assert_eq!(keys.len(), 100);
    assert!(keys.iter().all(|key| ReplyKey::parse(key).is_ok_and(|key| key.user() == "ann")));
    assert!(ReplyKey::random("no spaces").is_err());
}

#[test]
fn replies_say_ok_or_why_not() {
    let status = |properties: Properties| ReplyMeta::read(&properties).unwrap().failure;
    assert_eq!(status(request().with_text(header::STATUS, "ok")), None);
    for &code in Code::ALL {
        assert_eq!(status(request().with_text(header::STATUS, code.as_str())), Some(code));
    }
    for odd in ["", "OK", "ok ", "a_code_of_tomorrow"] {
        let failure = status(request().with_text(header::STATUS, odd));
        assert_eq!(failure, Some(Code::BackendError), "{odd:?} is no success");
    }
    assert_eq!(status(request()), Some(Code::BackendError), "nor is silence");
    assert!(ReplyMeta::read(&request().with_count(header::STATUS, 0)).is_err());
    assert_eq!(
        ReplyMeta::read(&Properties::new().with_correlation_id("c").with_text(header::STATUS, "ok")),
        Err(MetaError::NoIdentity),
        "a reply is matched by its message_id alone"
    );
}
