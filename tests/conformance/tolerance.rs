//! When a result is what ONNX says it should be.
//!
//! Numbers as the ONNX backend test runner compares them (`numpy.testing.assert_allclose`), with the relative tolerance of
//! its node cases and the absolute one of ONNX Runtime's own run of them; everything else must be equal.

use half::{bf16, f16};
use millrace_producer::{Datatype, Tensor};

const RELATIVE: f64 = 1e-3;
const ABSOLUTE: f64 = 1e-5;

/// Why `given` is not what was `stored`; `None` if it is. Names are not compared: the stored ones are not the model's.
pub(crate) fn difference(given: &Tensor, stored: &Tensor) -> Option<String> {
    if (given.datatype, &given.shape) != (stored.datatype, &stored.shape) {
        return Some(format!(
            "is {} {:?}, stored is {} {:?}",
            given.datatype, given.shape, stored.datatype, stored.shape
        ));
    }
    match given.datatype {
        Datatype::Fp16 => first_far(given, stored, |bytes| f16::from_le_bytes(bytes).to_f64()),
        Datatype::Bf16 => first_far(given, stored, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        Datatype::Fp32 => first_far(given, stored, |bytes| f32::from_le_bytes(bytes).into()),
        Datatype::Fp64 => first_far(given, stored, f64::from_le_bytes),
        _ if given.data == stored.data => None,
        datatype => Some(format!("{datatype} elements differ")),
    }
}

fn first_far<const N: usize>(given: &Tensor, stored: &Tensor, read: fn([u8; N]) -> f64) -> Option<String> {
    let elements = |tensor: &Tensor| -> Vec<f64> {
        tensor.data.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
    };
    let (given, stored) = (elements(given), elements(stored));
    let far: Vec<usize> = (0..given.len()).filter(|&at| !is_near(given[at], stored[at])).collect();
    let &first = far.first()?;
    let (count, total) = (far.len(), given.len());
    Some(format!("{count} of {total} differ, [{first}] is {}, stored {}", given[first], stored[first]))
}

fn is_near(given: f64, stored: f64) -> bool {
    if given.is_infinite() || stored.is_infinite() {
        return given == stored;
    }
    (given.is_nan() && stored.is_nan()) || (given - stored).abs() <= ABSOLUTE + RELATIVE * stored.abs()
}

/// Whether two tensors hold the same bits, but for the payload of NaN, which JSON does not carry.
pub(crate) fn is_same_in_json(given: &Tensor, wanted: &Tensor) -> bool {
    if (given.datatype, &given.shape) != (wanted.datatype, &wanted.shape) {
        return false;
    }
    fn all<const N: usize>(given: &[u8], wanted: &[u8], is_nan: fn([u8; N]) -> bool) -> bool {
        let pairs = given.as_chunks::<N>().0.iter().zip(wanted.as_chunks::<N>().0);
        given.len() == wanted.len() && pairs.into_iter().all(|(a, b)| a == b || (is_nan(*a) && is_nan(*b)))
    }
    let (a, b) = (&given.data, &wanted.data);
    match given.datatype {
        Datatype::Fp16 => all(a, b, |bytes| f16::from_le_bytes(bytes).is_nan()),
        Datatype::Bf16 => all(a, b, |bytes| bf16::from_le_bytes(bytes).is_nan()),
        Datatype::Fp32 => all(a, b, |bytes| f32::from_le_bytes(bytes).is_nan()),
        Datatype::Fp64 => all(a, b, |bytes| f64::from_le_bytes(bytes).is_nan()),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![i64::try_from(values.len()).unwrap()];
        Tensor::new("x", Datatype::Fp32, shape, data.into()).unwrap()
    }

    #[test]
    fn near_is_relative_and_nan_is_itself() {
        let stored = floats(&[1000.0, 0.0, f32::NAN, f32::INFINITY]);
        assert_eq!(difference(&floats(&[1000.9, 9e-6, f32::NAN, f32::INFINITY]), &stored), None);
        for far in [
            [1001.1, 0.0, f32::NAN, f32::INFINITY],
            [1000.0, 2e-5, f32::NAN, f32::INFINITY],
            [1000.0, 0.0, 0.0, f32::INFINITY],
            [1000.0, 0.0, f32::NAN, f32::NEG_INFINITY],
        ] {
            assert!(difference(&floats(&far), &stored).is_some(), "{far:?}");
        }
        assert!(difference(&floats(&[1000.0]), &stored).is_some());
    }

    #[test]
    fn json_keeps_every_bit_but_those_of_nan() {
        let payload = f32::from_bits(0x7fc0_0001);
        assert!(is_same_in_json(&floats(&[f32::NAN, 1.0]), &floats(&[payload, 1.0])));
        assert!(!is_same_in_json(&floats(&[0.0]), &floats(&[-0.0])));
        assert!(!is_same_in_json(&floats(&[1.0]), &floats(&[f32::NAN])));
    }
}
