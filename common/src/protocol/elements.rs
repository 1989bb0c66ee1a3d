//! Tensor elements as JSON: numbers and strings straight into little-endian bytes, and back.

use std::fmt;

use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use super::tensor::{BytesElements, Datatype, element_count, push_bytes_element};

/// Parses a tensor's JSON `data` into bytes.
///
/// Accepts a flat array in row-major order, or arrays nested as `shape` says; a bare scalar where the rank is 0.
/// Allocates at most four bytes for each of `raw`'s: what it is unescaped in included, and never more than the shape has.
///
/// # Errors
/// A message for the caller: wrong count, wrong nesting, a value outside the datatype's range.
pub fn parse(raw: &str, datatype: Datatype, shape: &[i64]) -> Result<Vec<u8>, ElementError> {
    let total = element_count(shape).map_err(|error| ElementError(error.to_string()))?;
    let data = Vec::with_capacity(most_bytes(raw, datatype, total));
    let mut sink = Sink { datatype, shape, total, count: 0, data };
    let mut deserializer = serde_json::Deserializer::from_str(raw);
    let item = Item { sink: &mut sink, depth: 0 };
    item.deserialize(&mut deserializer)
        .and_then(|kind| {
            deserializer.end()?;
            Ok(kind)
        })
        .map_err(|error| ElementError(error.to_string()))?;
    if sink.count != total {
        return Err(ElementError(format!("{} elements given, shape {shape:?} has {total}", sink.count)));
    }
    Ok(sink.data)
}

/// What the elements of `raw` can take at most, so that hostile shapes reserve nothing and nothing has to grow.
fn most_bytes(raw: &str, datatype: Datatype, total: usize) -> usize {
    let Some(size) = datatype.element_size() else {
        // Each has two quotes and a separator beside its text, and four bytes of length.
        return raw.len() + total.min(raw.len() / 3 + 1);
    };
    // Each has a character and a separator. A string with escapes is unescaped in a buffer of up to three times its length;
    // where there is one it must not count as elements too.
    let most = if raw.contains('\\') { separators(raw) } else { raw.len() / 2 };
    total.min(most + 1) * size
}

/// Commas outside strings.
fn separators(raw: &str) -> usize {
    let (mut count, mut is_text, mut is_escaped) = (0, false, false);
    for byte in raw.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b',' if !is_text => count += 1,
            _ => {}
        }
    }
    count
}

/// Why a JSON `data` value does not fit its tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ElementError(String);

struct Sink<'a> {
    datatype: Datatype,
    shape: &'a [i64],
    total: usize,
    count: usize,
    data: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    Array,
}

/// One JSON value at `depth` arrays below the top.
struct Item<'a, 'b> {
    sink: &'b mut Sink<'a>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Item<'_, '_> {
    type Value = Kind;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Item<'_, '_> {
    fn push<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Kind, E> {
        let sink = self.sink;
        if self.depth == 0 && !sink.shape.is_empty() {
            return Err(E::custom("`data` must be an array"));
        }
        sink.count += 1;
        if sink.count > sink.total {
            return Err(E::custom(format_args!(
                "more elements than the {} of shape {:?}",
                sink.total, sink.shape
            )));
        }
        if sink.datatype == Datatype::Bytes {
            push_bytes_element(&mut sink.data, bytes);
        } else {
            sink.data.extend_from_slice(bytes);
        }
        Ok(Kind::Scalar)
    }

    fn misfit<E: serde::de::Error>(&self, value: impl fmt::Display) -> E {
        E::custom(format_args!("{value} is not a {} value", self.sink.datatype))
    }

    fn float<E: serde::de::Error>(self, value: f64) -> Result<Kind, E> {
        // Rounding a finite number to infinity would change its meaning silently.
        #[expect(clippy::cast_possible_truncation, reason = "FP32 rounds to the nearest value by definition")]
        match self.sink.datatype {
            Datatype::Fp64 => self.push(&value.to_le_bytes()),
            Datatype::Fp32 if value.is_finite() && (value as f32).is_infinite() => Err(self.misfit(value)),
            Datatype::Fp32 => self.push(&(value as f32).to_le_bytes()),
            Datatype::Fp16 if value.is_finite() && f16::from_f64(value).is_infinite() => {
                Err(self.misfit(value))
            }
            Datatype::Fp16 => self.push(&f16::from_f64(value).to_le_bytes()),
            Datatype::Bf16 if value.is_finite() && bf16::from_f64(value).is_infinite() => {
                Err(self.misfit(value))
            }
            Datatype::Bf16 => self.push(&bf16::from_f64(value).to_le_bytes()),
            _ => Err(self.misfit(value)),
        }
    }

    fn integer<E: serde::de::Error>(self, value: i128) -> Result<Kind, E> {
        macro_rules! push {
            ($type:ty) => {
                match <$type>::try_from(value) {
                    Ok(value) => self.push(&value.to_le_bytes()),
                    Err(_) => Err(self.misfit(value)),
                }
            };
        }
        match self.sink.datatype {
            Datatype::Uint8 => push!(u8),
            Datatype::Uint16 => push!(u16),
            Datatype::Uint32 => push!(u32),
            Datatype::Uint64 => push!(u64),
            Datatype::Int8 => push!(i8),
            Datatype::Int16 => push!(i16),
            Datatype::Int32 => push!(i32),
            Datatype::Int64 => push!(i64),
            #[expect(clippy::cast_precision_loss, reason = "an integer literal rounds as 1.0 literals do")]
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => self.float(value as f64),
            Datatype::Bool | Datatype::Bytes => Err(self.misfit(value)),
        }
    }
}

impl<'de> Visitor<'de> for Item<'_, '_> {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements", self.sink.datatype)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Kind, E> {
        match self.sink.datatype {
            Datatype::Bool => self.push(&[u8::from(value)]),
            _ => Err(self.misfit(value)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Kind, E> {
        self.integer(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Kind, E> {
        self.integer(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Kind, E> {
        self.float(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Kind, E> {
        match (self.sink.datatype, value) {
            (Datatype::Bytes, text) => self.push(text.as_bytes()),
            (_, "NaN") => self.float(f64::NAN),
            (_, "Infinity") => self.float(f64::INFINITY),
            (_, "-Infinity") => self.float(f64::NEG_INFINITY),
            _ => Err(self.misfit("a string")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Kind, A::Error> {
        let rank = self.sink.shape.len();
        let depth = self.depth;
        if depth >= rank.max(1) {
            return Err(A::Error::custom("`data` is nested deeper than the shape"));
        }
        let before = self.sink.count;
        let mut items = 0usize;
        let mut kind = None;
        while let Some(next) = sequence.next_element_seed(Item { sink: &mut *self.sink, depth: depth + 1 })? {
            if *kind.get_or_insert(next) != next {
                return Err(A::Error::custom("`data` mixes numbers and arrays at one level"));
            }
            items += 1;
        }
        let flat = depth == 0 && kind != Some(Kind::Array);
        if flat {
            // The count is compared with the whole shape at the end.
            return Ok(Kind::Array);
        }
        let leaf = kind == Some(Kind::Scalar);
        let expected = usize::try_from(self.sink.shape[depth]).unwrap_or(usize::MAX);
        if items != expected || (leaf && depth + 1 != rank) {
            return Err(A::Error::custom(format_args!(
                "`data` is not nested as shape {:?} (element {before})",
                self.sink.shape
            )));
        }
        Ok(Kind::Array)
    }
}

/// An output that JSON cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("BYTES element {index} is not UTF-8; ask for this output with `binary_data: true`")]
pub struct NotUtf8 {
    /// Element index.
    pub index: usize,
}

/// Appends `data` as a flat JSON array to `out`.
///
/// `data` must have passed [`super::tensor::Tensor::check`] or come from a model; a trailing partial element is ignored.
///
/// # Errors
/// [`NotUtf8`] for BYTES elements that are not text.
pub fn write(out: &mut Vec<u8>, datatype: Datatype, data: &[u8]) -> Result<(), NotUtf8> {
    macro_rules! numbers {
        ($type:ty) => {
            write_each(out, data.as_chunks().0.iter().map(|b| <$type>::from_le_bytes(*b)), write_number)
        };
    }
    macro_rules! floats {
        ($type:ty, $widen:expr, $write_finite:expr) => {
            write_each(
                out,
                data.as_chunks().0.iter().map(|b| $widen(<$type>::from_le_bytes(*b))),
                |out, n| {
                    if n.is_finite() {
                        $write_finite(out, n);
                    } else if n.is_nan() {
                        out.extend_from_slice(b"\"NaN\"");
                    } else if n > Default::default() {
                        out.extend_from_slice(b"\"Infinity\"");
                    } else {
                        out.extend_from_slice(b"\"-Infinity\"");
                    }
                },
            )
        };
    }
    match datatype {
        Datatype::Bool => write_each(out, data.iter(), |out, b| {
            out.extend_from_slice(if *b == 0 { b"false" } else { b"true" });
        }),
        Datatype::Uint8 => numbers!(u8),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp16 => floats!(f16, f16::to_f32, write_number),
        Datatype::Bf16 => floats!(bf16, bf16::to_f32, write_number),
        Datatype::Fp32 => floats!(f32, std::convert::identity, write_fp32),
        Datatype::Fp64 => floats!(f64, std::convert::identity, write_number),
        Datatype::Bytes => return write_strings(out, data),
    }
    Ok(())
}

fn write_each<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, mut item: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (index, value) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item(out, value);
    }
    out.push(b']');
}

fn write_number<N: serde::Serialize>(out: &mut Vec<u8>, number: N) {
    serde_json::to_writer(out, &number).expect("writing to memory cannot fail");
}

fn write_fp32(out: &mut Vec<u8>, number: f32) {
    // Readers of JSON, ours too, go through FP64. There the shortest text of this one number, 7.038531e-26, falls on
    // the tie with its neighbour and rounds away from it. It is the only one of all FP32 (searched exhaustively,
    // 2026-11), so the others keep their short texts.
    const MISREAD: u32 = 0x15ae_43fd;
    if number.abs().to_bits() == MISREAD {
        write_number(out, f64::from(number));
    } else {
        write_number(out, number);
    }
}

fn write_strings(out: &mut Vec<u8>, data: &[u8]) -> Result<(), NotUtf8> {
    out.push(b'[');
    for (index, element) in BytesElements::new(data).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let text = element.ok().and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(NotUtf8 { index })?;
        serde_json::to_writer(&mut *out, text).expect("writing to memory cannot fail");
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn flat_and_nested_data_mean_the_same() {
        let wanted = Ok(f32s(&[1.0, 2.0, 3.0, 4.0]));
        for raw in ["[1,2,3,4]", "[[1,2],[3,4]]", " [ [1.0, 2e0] , [3, 4] ] "] {
            assert_eq!(parse(raw, Datatype::Fp32, &[2, 2]), wanted, "{raw}");
        }
        assert_eq!(parse("7", Datatype::Uint8, &[]), Ok(vec![7]));
        assert_eq!(parse("[7]", Datatype::Uint8, &[]), Ok(vec![7]));
        assert_eq!(parse("[]", Datatype::Fp32, &[0]), Ok(vec![]));
        assert_eq!(parse("[[],[]]", Datatype::Fp32, &[2, 0]), Ok(vec![]));
    }

    #[test]
    fn misfits_are_refused() {
        for (raw, datatype, shape) in [
            ("[1,2,3]", Datatype::Fp32, &[2, 2][..]),
            ("[[1,2,3],[4]]", Datatype::Fp32, &[2, 2]),
            ("[[1,2],3,4]", Datatype::Fp32, &[2, 2]),
            ("[[[1,2],[3,4]]]", Datatype::Fp32, &[2, 2]),
            ("[[1],[2],[3],[4]]", Datatype::Fp32, &[2, 2]),
            ("[[1,2,3,4]]", Datatype::Fp32, &[2, 2]),
            ("[1,2,3,4,5]", Datatype::Fp32, &[2, 2]),
            ("7", Datatype::Uint8, &[1]),
            ("[256]", Datatype::Uint8, &[1]),
            ("[-1]", Datatype::Uint64, &[1]),
            ("[1.5]", Datatype::Int32, &[1]),
            ("[1e39]", Datatype::Fp32, &[1]),
            ("[70000]", Datatype::Fp16, &[1]),
            ("[1]", Datatype::Bool, &[1]),
            ("[true]", Datatype::Int8, &[1]),
            ("[null]", Datatype::Fp32, &[1]),
            ("[{}]", Datatype::Fp32, &[1]),
            ("[\"nan\"]", Datatype::Fp32, &[1]),
            ("[\"NaN\"]", Datatype::Int32, &[1]),
            ("[1] x", Datatype::Fp32, &[1]),
            ("[1", Datatype::Fp32, &[1]),
        ] {
            assert!(parse(raw, datatype, shape).is_err(), "{raw} as {datatype} {shape:?}");
        }
    }

    #[test]
    fn not_a_number_has_a_spelling() {
        let raw = r#"["NaN","Infinity","-Infinity",-0.0]"#;
        for datatype in [Datatype::Fp16, Datatype::Bf16, Datatype::Fp32, Datatype::Fp64] {
            let data = parse(raw, datatype, &[4]).unwrap();
            let mut out = Vec::new();
            write(&mut out, datatype, &data).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), raw, "{datatype}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_need_binary() {
        let mut data = Vec::new();
        push_bytes_element(&mut data, b"ok");
        push_bytes_element(&mut data, &[0xff]);
        assert_eq!(write(&mut Vec::new(), Datatype::Bytes, &data), Err(NotUtf8 { index: 1 }));
    }
}
