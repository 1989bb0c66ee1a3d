//! Arbitrary messages of the protocol, valid by construction.

use bytes::Bytes;
use millrace_common::protocol::codec::{
    Encoding, MAX_ID_BYTES, MAX_NAME_BYTES, MAX_PARAMETERS, MAX_RANK, ResponseHead, TensorView,
};
use millrace_common::protocol::request::{InferRequest, Parameter, Parameters, RequestedOutput};
use millrace_common::protocol::tensor::{Datatype, Tensor, element_count, push_bytes_element};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Most elements of an arbitrary tensor: enough for every code path, few enough for many cases a second.
const MAX_ELEMENTS: usize = 48;

/// Characters that JSON escapes, that look like its syntax, or that lie at the edges of UTF-8's lengths.
const AWKWARD: &[char] = &[
    'a',
    '"',
    '\\',
    '/',
    '\0',
    '\u{8}',
    '\n',
    '\r',
    '\t',
    '\u{1f}',
    '\u{7f}',
    '\u{80}',
    'é',
    '\u{7ff}',
    '\u{800}',
    '\u{2028}',
    '\u{d7ff}',
    '\u{e000}',
    '\u{feff}',
    '\u{ffff}',
    '😀',
    '\u{10ffff}',
    '{',
    ']',
    ',',
];

/// Bit patterns at the edges of the number formats; a datatype takes the low bytes.
const EDGES: &[u64] = &[
    0,
    1,
    u64::MAX,
    1 << 63,
    i64::MAX.unsigned_abs(),
    (1 << 53) + 1,
    // FP64: -0, infinities, NaNs with and without payload, smallest and largest.
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x000f_ffff_ffff_ffff,
    0x7fef_ffff_ffff_ffff,
    // FP32: the same, and the one number whose shortest text is read as its neighbour by way of FP64.
    0x8000_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffff_ffff,
    0x007f_ffff,
    0x7f7f_ffff,
    0x15ae_43fd,
    0x95ae_43fd,
    // FP16 and BF16.
    0x8000,
    0x7c00,
    0xfc00,
    0x7e01,
    0x03ff,
    0x7bff,
    0x7f80,
    0xff80,
    0x7fc1,
    0x007f,
    0x7f7f,
];

/// Whether BYTES elements must be text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elements {
    /// As JSON needs.
    Utf8,
    /// Anything.
    Any,
}

impl Elements {
    /// What the encoding can carry.
    pub(crate) fn of(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Json => Self::Utf8,
            Encoding::Binary => Self::Any,
        }
    }
}

/// Text of at most `max` bytes, a multiple of four.
fn text(max: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z0-9_./:-]{0,16}",
        4 => vec(select(AWKWARD), 0..12).prop_map(String::from_iter),
        1 => "\\PC{0,24}",
        1 => Just("x".repeat(max)),
        1 => Just("😀".repeat(max / 4)),
    ]
}

/// A tensor or parameter name.
pub(crate) fn name() -> impl Strategy<Value = String> {
    text(MAX_NAME_BYTES)
}

/// A shape of at most [`MAX_ELEMENTS`] elements: scalars, zero dimensions, every rank.
pub(crate) fn shape() -> impl Strategy<Value = Vec<i64>> {
    let dimension = prop_oneof![1 => Just(0i64), 6 => Just(1), 6 => 2..=4i64, 1 => Just(MAX_ELEMENTS as i64)];
    vec(dimension, 0..=MAX_RANK).prop_map(|mut shape| {
        let mut product = 1;
        for dimension in &mut shape {
            if product * (*dimension).max(1) > MAX_ELEMENTS as i64 {
                *dimension = 1;
            }
            product *= (*dimension).max(1);
        }
        shape
    })
}

/// Raw bits of as many elements as the shape has.
pub(crate) fn shape_and_bits() -> impl Strategy<Value = (Vec<i64>, Vec<u64>)> {
    shape().prop_flat_map(|shape| {
        let count = element_count(&shape).unwrap();
        (Just(shape), vec(prop_oneof![any::<u64>(), select(EDGES)], count))
    })
}

/// A tensor of these bits; BYTES elements come from them too, as text or as bytes.
pub(crate) fn tensor_of(
    name: String,
    datatype: Datatype,
    shape: Vec<i64>,
    bits: &[u64],
    elements: Elements,
) -> Tensor {
    let mut data = Vec::new();
    for &bits in bits {
        match datatype.element_size() {
            Some(_) if datatype == Datatype::Bool => data.push((bits & 1) as u8),
            Some(size) => data.extend_from_slice(&bits.to_le_bytes()[..size]),
            None if elements == Elements::Any => {
                let length = (bits >> 32) as usize % 9;
                push_bytes_element(&mut data, &bits.to_le_bytes()[..length.min(8)]);
            }
            None => {
                let characters = bits.to_le_bytes().map(|b| AWKWARD[usize::from(b) % AWKWARD.len()]);
                let length = (bits >> 61) as usize;
                push_bytes_element(&mut data, String::from_iter(&characters[..length]).as_bytes());
            }
        }
    }
    Tensor::new(name, datatype, shape, Bytes::from(data)).unwrap()
}

/// Any tensor.
pub(crate) fn tensor(elements: Elements) -> impl Strategy<Value = Tensor> {
    (name(), select(Datatype::ALL), shape_and_bits())
        .prop_map(move |(name, datatype, (shape, bits))| tensor_of(name, datatype, shape, &bits, elements))
}

fn parameter() -> impl Strategy<Value = Parameter> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![
        any::<bool>().prop_map(Parameter::Bool),
        any::<i64>().prop_map(Parameter::Int),
        (i64::MAX as u64 + 1..=u64::MAX).prop_map(Parameter::Uint),
        (POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO).prop_map(Parameter::Float),
        text(512).prop_map(Parameter::String),
    ]
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let name = prop_oneof![4 => name(), 1 => Just(InferRequest::BINARY_DATA_OUTPUT.to_owned())];
    prop_oneof![
        8 => btree_map(name, parameter(), 0..5),
        1 => vec(parameter(), MAX_PARAMETERS).prop_map(|values| {
            values.into_iter().enumerate().map(|(index, value)| (format!("p{index}"), value)).collect()
        }),
    ]
}

/// Any request that an encoding can carry.
pub(crate) fn request(elements: Elements) -> impl Strategy<Value = InferRequest> {
    let output =
        (name(), option::of(any::<bool>())).prop_map(|(name, binary)| RequestedOutput { name, binary });
    (option::of(text(MAX_ID_BYTES)), parameters(), vec(tensor(elements), 0..4), vec(output, 0..4))
        .prop_map(|(id, parameters, inputs, outputs)| InferRequest { id, parameters, inputs, outputs })
}

/// What a response is encoded from.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// The model's name.
    pub(crate) model_name: String,
    /// The model's version.
    pub(crate) model_version: Option<String>,
    /// The request's id.
    pub(crate) id: Option<String>,
    /// Each output with its encoding.
    pub(crate) outputs: Vec<(Tensor, Encoding)>,
}

impl Response {
    /// All but the outputs.
    pub(crate) fn head(&self) -> ResponseHead<'_> {
        ResponseHead {
            model_name: &self.model_name,
            model_version: self.model_version.as_deref(),
            id: self.id.as_deref(),
        }
    }

    /// The outputs, borrowed.
    pub(crate) fn views(&self) -> Vec<TensorView<'_>> {
        self.outputs.iter().map(|(tensor, encoding)| tensor.view(*encoding)).collect()
    }
}

/// Any response, its outputs in either encoding.
pub(crate) fn response() -> impl Strategy<Value = Response> {
    let output = select(&[Encoding::Json, Encoding::Binary][..])
        .prop_flat_map(|encoding| tensor(Elements::of(encoding)).prop_map(move |tensor| (tensor, encoding)));
    (name(), option::of(name()), option::of(text(MAX_ID_BYTES)), vec(output, 0..4)).prop_map(
        |(model_name, model_version, id, outputs)| Response { model_name, model_version, id, outputs },
    )
}
