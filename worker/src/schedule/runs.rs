//! Where a tensor's elements lie inside a larger one: rows filled up to a batch's largest, and cut back again. Plain code; runs
//! on instance threads.

use std::borrow::Cow;
use std::ops::Range;

/// Copies `source` of shape `own` to the beginning of `target` of shape `wide`, along every axis, and `element` to what is left.
///
/// # Panics
/// When slices have not the sizes of their shapes, or `own` does not fit into `wide`.
pub fn widen(target: &mut [u8], wide: &[i64], source: &[u8], own: &[i64], element: &[u8]) {
    let size = element.len();
    let (mut filled, mut rest) = (0, source);
    runs(wide, own, &mut |run| {
        let (start, end) = (run.start * size, run.end * size);
        fill(&mut target[filled..start], element);
        let (here, more) = rest.split_at(end - start);
        target[start..end].copy_from_slice(here);
        (filled, rest) = (end, more);
    });
    fill(&mut target[filled..], element);
}

/// The part of `data`, of shape `wide` and elements of `size` bytes, that [`widen`] would have copied from shape `own`.
///
/// # Panics
/// As [`widen`].
pub fn cut<'a>(data: &'a [u8], size: usize, wide: &[i64], own: &[i64]) -> Cow<'a, [u8]> {
    if wide == own {
        return Cow::Borrowed(data);
    }
    let mut kept = Vec::with_capacity(count(own) * size);
    runs(wide, own, &mut |run| kept.extend_from_slice(&data[run.start * size..run.end * size]));
    Cow::Owned(kept)
}

/// Calls `visit` with the elements of `wide`, in row-major order and in runs as long as they go, that lie inside `own` too.
fn runs(wide: &[i64], own: &[i64], visit: &mut impl FnMut(Range<usize>)) {
    if !own.contains(&0) {
        runs_from(0, wide, own, visit);
    }
}

fn runs_from(start: usize, wide: &[i64], own: &[i64], visit: &mut impl FnMut(Range<usize>)) {
    match (wide, own) {
        ([_, wide_inner @ ..], [rows, own_inner @ ..]) if wide_inner != own_inner => {
            let stride = count(wide_inner);
            for row in 0..*rows as usize {
                runs_from(start + row * stride, wide_inner, own_inner, visit);
            }
        }
        _ => visit(start..start + count(own)),
    }
}

/// Of shapes whose elements are in memory.
pub(super) fn count(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}

fn fill(target: &mut [u8], element: &[u8]) {
    match element {
        [first, others @ ..] if others.iter().all(|byte| byte == first) => target.fill(*first),
        _ => target.chunks_exact_mut(element.len()).for_each(|place| place.copy_from_slice(element)),
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::protocol::tensor::Datatype;
    use proptest::prelude::*;

    use super::super::batch::stack;
    use super::*;

    /// A request's shape and its elements, none of which is the padding's.
    type Part = (Vec<i64>, Vec<u8>);

    /// Requests of one rank, one to four, and unlike sizes, of elements of `datatype`.
    fn parts() -> impl Strategy<Value = (Datatype, Vec<Part>)> {
        let datatype =
            prop::sample::select(vec![Datatype::Bool, Datatype::Fp16, Datatype::Fp32, Datatype::Int64]);
        (datatype, 0usize..4).prop_flat_map(|(datatype, inner)| {
            let shape = (1i64..4, prop::collection::vec(0i64..5, inner))
                .prop_map(|(rows, inner)| [vec![rows], inner].concat());
            let part = shape.prop_flat_map(move |shape| {
                let bytes = count(&shape) * datatype.element_size().unwrap();
                (Just(shape), prop::collection::vec(0u8..200, bytes))
            });
            (Just(datatype), prop::collection::vec(part, 1..5))
        })
    }

    /// The same, element by element.
    fn naive(wide: &[i64], (own, data): &Part, element: &[u8]) -> Vec<u8> {
        let mut filled = Vec::new();
        for place in 0..count(wide) {
            let (mut rest, mut at, mut step, mut is_inside) = (place, 0, 1, true);
            for (&wide, &own) in wide.iter().zip(own).rev() {
                let index = rest % wide as usize;
                rest /= wide as usize;
                is_inside &= index < own as usize;
                at += index * step;
                step *= own as usize;
            }
            let size = element.len();
            filled.extend_from_slice(if is_inside { &data[at * size..][..size] } else { element });
        }
        filled
    }

    proptest! {
        /// Rows of unlike sizes are stacked as element by element, and every request gets its own back.
        #[test]
        fn what_is_filled_up_is_cut_back((datatype, parts) in parts()) {
            let size = datatype.element_size().unwrap();
            let element: Vec<u8> = (200..200 + size as u8).collect();
            let pieces = parts.iter().map(|(shape, data)| (shape.as_slice(), data.as_slice()));
            let input = stack("x", datatype, pieces, Some(&element)).unwrap();
            for (axis, &wide) in input.shape.iter().enumerate() {
                let sizes = parts.iter().map(|(shape, _)| shape[axis]);
                prop_assert_eq!(wide, if axis == 0 { sizes.sum::<i64>() } else { sizes.max().unwrap() });
            }
            let mut stacked = vec![0; input.byte_length().unwrap()];
            input.copy_to(&mut stacked);
            let mut rest = &stacked[..];
            for part in &parts {
                let wide = [&part.0[..1], &input.shape[1..]].concat();
                let (rows, more) = rest.split_at(count(&wide) * size);
                prop_assert_eq!(rows, naive(&wide, part, &element));
                prop_assert_eq!(&*cut(rows, size, &wide, &part.0), &part.1[..]);
                rest = more;
            }
            prop_assert!(rest.is_empty());
        }
    }
}
