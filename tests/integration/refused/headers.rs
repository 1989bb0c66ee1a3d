//! Headers and properties of another type or value than the wire contract has.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString};
use millrace_tests::foreign::with_header;

use super::{Case, End};

/// Headers that count something.
const COUNTS: [&str; 6] = [
    "Inference-Header-Content-Length",
    "x-published-ms",
    "x-budget-ms",
    "x-model-version",
    "x-attempt",
    "x-replies-per-message",
];

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// No counts.
fn uncountable() -> [(&'static str, AMQPValue); 8] {
    [
        ("text", text("soon")),
        ("negative", AMQPValue::LongInt(-1)),
        ("a negative as text", text("-1")),
        ("above 2^63", text("18446744073709551615")),
        ("a fraction", AMQPValue::Double(1.0)),
        ("a boolean", AMQPValue::Boolean(true)),
        ("a table", AMQPValue::FieldTable(FieldTable::default())),
        ("a list", AMQPValue::FieldArray(FieldArray::default())),
    ]
}

/// No text.
fn unreadable() -> [(&'static str, AMQPValue); 3] {
    [
        ("a number", AMQPValue::LongInt(1)),
        ("a table", AMQPValue::FieldTable(FieldTable::default())),
        ("not UTF-8", AMQPValue::LongString(LongString::from(vec![0xff]))),
    ]
}

fn invalid(
    name: String,
    text: &'static str,
    edit: impl Fn(BasicProperties) -> BasicProperties + 'static,
) -> Case {
    Case::of(name, End::Answered("invalid_input", text), edit)
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let odd_values = COUNTS.iter().flat_map(|name| uncountable().map(|value| (*name, value)));
    let odd_texts = ["x-tenant", "x-accept-degraded"]
        .into_iter()
        .flat_map(|name| unreadable().map(|value| (name, value)));
    for (name, (what, value)) in odd_values.chain(odd_texts) {
        cases.push(invalid(format!("{name}: {what}"), name, move |properties| {
            with_header(properties, name, value.clone())
        }));
    }
    let with =
        |name: &'static str, value: AMQPValue| move |properties| with_header(properties, name, value.clone());
    cases.push(invalid("version 0".into(), "from 1 up", with("x-model-version", AMQPValue::LongInt(0))));
    let unknown = End::Answered("unknown_version", "no worker serves version");
    cases.push(Case::of(
        "a version nobody has",
        unknown.clone(),
        with("x-model-version", AMQPValue::LongInt(7)),
    ));
    cases.push(Case::of(
        "the last version",
        unknown,
        with("x-model-version", AMQPValue::LongLongInt(i64::MAX)),
    ));
    let late = End::Answered("deadline_exceeded", "deadline");
    cases.push(Case::of("no budget", late.clone(), with("x-budget-ms", AMQPValue::LongInt(0))));
    cases.push(Case::of("long ago", late, |properties| {
        let properties = with_header(properties, "x-budget-ms", AMQPValue::LongInt(1));
        with_header(properties, "x-published-ms", AMQPValue::LongInt(1))
    }));
    let nameless = |properties: BasicProperties| {
        let fresh = BasicProperties::default();
        match properties.reply_to() {
            Some(reply_to) => fresh.with_reply_to(reply_to.clone()),
            None => fresh,
        }
    };
    cases.push(invalid("no identity".into(), "neither `message_id` nor", nameless));
    let unnamed = move |properties| nameless(properties).with_message_id("".into());
    cases.push(invalid("an empty identity".into(), "neither `message_id` nor", unnamed));
    cases.push(Case::of(
        "long headers",
        End::Kept("oversized_headers"),
        with("h", text(&"x".repeat(17 << 10))),
    ));
    cases.push(Case::of("many headers", End::Kept("oversized_headers"), |properties| {
        (0..300).fold(properties, |properties, n| {
            with_header(properties, &format!("h{n}"), text(&"x".repeat(60)))
        })
    }));
    cases
}
