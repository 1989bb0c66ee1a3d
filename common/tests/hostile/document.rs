//! Documents that are nearly right: the protocol's grammar with something wrong here and there.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A body and what is said of its header's length.
#[derive(Clone)]
pub(crate) struct Document {
    /// JSON or nearly, then perhaps raw bytes.
    pub(crate) body: Vec<u8>,
    /// True or not.
    pub(crate) header_length: Option<usize>,
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (header length {:?})", self.body.escape_ascii(), self.header_length)
    }
}

/// Scalars at and beyond the edges of JSON and of each datatype.
const SCALARS: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "1.5",
    "255",
    "256",
    "65520",
    "1e5",
    "1E+2",
    "3e38",
    "1e39",
    "1e308",
    "1e309",
    "-1e999999999",
    "1e-999999999",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890123456789",
    "0.00000000000000000000000000000000000000001",
    // Not JSON.
    "01",
    "1.",
    ".5",
    "-",
    "+1",
    "NaN",
    "Infinity",
    "0x10",
    "nul",
    "'a'",
    "\u{7f}",
    "",
];

const STRINGS: &[&str] = &[
    r#""""#,
    r#""x""#,
    r#""NaN""#,
    r#""-Infinity""#,
    r#""FP32""#,
    r#""FP128""#,
    r#""fp32""#,
    r#""\u0000\ud83d\ude00""#,
    r#""é😀""#,
    "\"\u{7f}\u{85}\u{2028}\"",
    // Not JSON.
    r#""\ud800""#,
    r#""\x""#,
    r#""\u12""#,
    "\"\n\"",
    r#"""#,
    "\"\\",
];

const NAMES: &[&str] =
    &[r#""""#, r#""x""#, r#""\u0000\ud83d\ude00""#, r#""é😀""#, "\"\u{7f}\u{85}\u{2028}\""];

/// Datatypes with a shape and data that fit them; the last number is the length of the data as raw bytes.
const FITTING: &[(&str, &str, &str, usize)] = &[
    ("BOOL", "[2]", "[true,false]", 2),
    ("UINT8", "[]", "255", 1),
    ("INT16", "[2,2]", "[[1,2],[3,4]]", 8),
    ("INT64", "[1]", "[-9223372036854775808]", 8),
    ("FP16", "[2,1]", "[1,\"NaN\"]", 4),
    ("FP32", "[1,1,1]", "[[[1e-50]]]", 4),
    ("FP64", "[0,3]", "[]", 0),
    ("BYTES", "[2]", r#"["a","\u0062"]"#, 8),
];

const DATATYPES: &[&str] = &[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
    "FP64", "BYTES",
];

const SHAPES: &[&str] = &[
    "[]",
    "[0]",
    "[1]",
    "[2]",
    "[1,2]",
    "[2,2]",
    "[0,3]",
    "[3,0]",
    "[-1]",
    "[1.0]",
    "[\"1\"]",
    "[null]",
    "[67108864]",
    "[67108865]",
    "[9223372036854775807]",
    "[9223372036854775808]",
    "[4294967296,4294967296]",
    "[0,9223372036854775807]",
    "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]",
    "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]",
];

const DATA: &[&str] = &[
    "[]",
    "[1]",
    "[1,2]",
    "[1,2,3,4]",
    "[[1,2]]",
    "[[1,2],[3,4]]",
    "[[],[]]",
    "[[[1]]]",
    "[1,[2]]",
    "[[1],2]",
    "7",
    "[7]",
    "[true]",
    "[\"a\"]",
    "[\"a\",\"\\u0062\"]",
    "[1,2",
    "[1 2]",
    "[1,]",
    "[null]",
    "[{}]",
];

const SIZES: &[&str] = &[
    "0",
    "1",
    "2",
    "4",
    "8",
    "16",
    "-1",
    "1.0",
    "true",
    "\"4\"",
    "9223372036854775807",
    "18446744073709551615",
];

/// Any value, right or wrong.
fn junk() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![4 => select(SCALARS).prop_map(str::to_owned), 3 => select(STRINGS).prop_map(str::to_owned),
        1 => (1..300usize).prop_map(|n| format!("\"{}\"", "\u{7f}".repeat(n)))];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec((select(STRINGS), inner.clone()), 0..4).prop_map(|members| object(
                members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
            (inner, 1..200usize)
                .prop_map(|(value, depth)| { format!("{}{value}{}", "[".repeat(depth), "]".repeat(depth)) }),
        ]
    })
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<_> = members.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// A value that is usually right.
fn or_junk(right: impl Strategy<Value = String> + 'static) -> BoxedStrategy<String> {
    prop_oneof![40 => right, 1 => junk()].boxed()
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> + use<> {
    select(texts).prop_map(str::to_owned)
}

/// An object of these members: mostly all of them in order; else some left out, doubled, or followed by an unknown one.
fn members(known: Vec<(&'static str, BoxedStrategy<String>)>) -> BoxedStrategy<String> {
    let count = known.len();
    let (keys, values): (Vec<_>, Vec<_>) = known.into_iter().unzip();
    let order = prop_oneof![
        16 => Just((0..count).collect::<Vec<_>>()),
        4 => Just((0..count).collect::<Vec<_>>()).prop_shuffle(),
        1 => vec(0..count, 0..count + 2),
    ];
    let unknown = prop_oneof![16 => Just(None), 1 => (select(STRINGS), junk()).prop_map(Some)];
    (values, order, unknown)
        .prop_map(move |(values, order, unknown)| {
            let known = order.into_iter().map(|i| (format!("\"{}\"", keys[i]), values[i].clone()));
            object(known.chain(unknown.map(|(key, value)| (key.to_owned(), value))).collect())
        })
        .boxed()
}

fn parameters() -> BoxedStrategy<String> {
    let few = members(vec![("binary_data_output", or_junk(one_of(&["true", "false"])))]);
    let many = (0..80usize, any::<bool>()).prop_map(|(count, repeat)| {
        object((0..count).map(|i| (format!("\"p{}\"", if repeat { 0 } else { i }), "1".into())).collect())
    });
    or_junk(prop_oneof![12 => few, 1 => many])
}

fn tensor() -> BoxedStrategy<String> {
    let name = || prop_oneof![20 => one_of(NAMES), 1 => (250..260usize).prop_map(|n| format!("\"{}\"", "n".repeat(n)))];
    let members_of = move |datatype: BoxedStrategy<String>, shape, data, size: BoxedStrategy<String>| {
        let size =
            members(vec![("binary_data_size", or_junk(size)), ("binary_data", or_junk(one_of(&["true"])))]);
        let head =
            vec![("name", or_junk(name())), ("shape", or_junk(shape)), ("datatype", or_junk(datatype))];
        let with = |last: Vec<_>| members([head.clone(), last].concat());
        let (data, size) = (("data", or_junk(data)), ("parameters", or_junk(size)));
        prop_oneof![6 => with(vec![data.clone()]), 3 => with(vec![size.clone()]), 1 => with(vec![data, size])]
    };
    let quoted = |name: &str| format!("\"{name}\"");
    let fitting = select(FITTING).prop_flat_map(move |(datatype, shape, data, size)| {
        let just = |text: &str| Just(text.to_owned()).boxed();
        members_of(just(&quoted(datatype)), just(shape), just(data), just(&size.to_string()))
    });
    let datatype = select(DATATYPES).prop_map(quoted).boxed();
    let any = members_of(datatype, one_of(SHAPES).boxed(), one_of(DATA).boxed(), one_of(SIZES).boxed());
    prop_oneof![4 => fitting, 1 => any].boxed()
}

fn array(item: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let few = vec(item.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(",")));
    let many = (item, 250..260usize).prop_map(|(item, count)| format!("[{}]", vec![item; count].join(",")));
    or_junk(prop_oneof![40 => few, 1 => many])
}

/// A request, a response, something of both, or neither.
fn json() -> BoxedStrategy<String> {
    let text = || or_junk(one_of(NAMES));
    let output = members(vec![("name", text()), ("parameters", parameters())]);
    let request = members(vec![
        ("id", text()),
        ("parameters", parameters()),
        ("inputs", array(tensor())),
        ("outputs", array(output)),
    ]);
    let response = members(vec![
        ("model_name", text()),
        ("model_version", text()),
        ("id", text()),
        ("outputs", array(tensor())),
    ]);
    or_junk(prop_oneof![request, response])
}

/// Nearly a message, with raw bytes behind it and a header length that may be a lie.
pub(crate) fn document() -> impl Strategy<Value = Document> {
    let lie = prop_oneof![
        6 => Just(None),
        1 => any::<Index>().prop_map(Some),
    ];
    let tail = prop_oneof![select(&[1, 2, 4, 8, 16][..]), 0..24usize].prop_map(|length| vec![1; length]);
    let tail = prop_oneof![3 => tail, 1 => vec(any::<u8>(), 0..24)];
    (json(), tail, any::<bool>(), lie, any::<bool>()).prop_map(|(json, tail, has_tail, lie, is_far)| {
        let told = json.len();
        let mut body = json.into_bytes();
        if has_tail {
            body.extend(tail);
        }
        let lie = lie.map(|at| if is_far { usize::MAX - at.index(4) } else { at.index(body.len() + 2) });
        Document { header_length: lie.or(has_tail.then_some(told)), body }
    })
}
