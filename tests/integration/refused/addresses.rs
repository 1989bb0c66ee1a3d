//! Where requests go and where their replies are to go: keys of others, of other tiers, of nobody.

use lapin::types::{AMQPValue, FieldArray};
use millrace_tests::foreign::{rows, with_header};

use super::{Case, End};
use crate::hostile::reply_tos;

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for reply_to in reply_tos("millrace") {
        let name = format!("reply to {reply_to:?}");
        cases.push(Case::of(name, End::Kept("invalid_reply_to"), move |properties| {
            properties.with_reply_to(reply_to.as_str().into())
        }));
    }
    let others = |properties: lapin::BasicProperties| {
        properties.with_user_id("guest".into()).with_reply_to("ann.abcdefghijklmnopqrstuvwxyz".into())
    };
    cases.push(Case::of("another user's key", End::Kept("invalid_reply_to"), others));
    for (what, keys) in
        [("to nobody", vec!["nobody.free"]), ("to two nobodies", vec!["a.b", "c.d"]), ("to none", vec![])]
    {
        let keys: Vec<AMQPValue> = keys.into_iter().map(|key| AMQPValue::LongString(key.into())).collect();
        cases.push(Case::of(format!("CC {what}"), End::Kept("sender_selected"), move |properties| {
            with_header(properties, "CC", AMQPValue::FieldArray(FieldArray::from(keys.clone())))
        }));
    }
    for key in [
        "nobody.premium",
        "four.gold",
        "four.premium.free",
        "four.",
        ".premium",
        "four",
        "premium",
        "",
        ".",
        "#",
        "*.premium",
        "four.*",
        "FOUR.premium",
        "../four.premium",
        "four/../BYTES.premium",
        "/etc/passwd.premium",
        "four%2e.premium",
        "four .premium",
        "four\n.premium",
        "four\0.premium",
        "vier\u{202e}.premium",
        &"m".repeat(250),
    ] {
        let case = Case::new(format!("routing key {key:?}"), rows(&[[1.0; 4]]), End::Returned);
        cases.push(Case { to: Err(key.to_owned()), ..case });
    }
    cases
}
