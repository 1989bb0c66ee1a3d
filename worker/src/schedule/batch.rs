//! Rows stacked for the model, and split again. Plain code; runs on instance threads.

use std::ops::Range;

use millrace_common::protocol::tensor::{BytesElements, Datatype, element_count};

use super::runs::{count, widen};

/// One input of a batch: pieces of several requests, to be copied one after the other.
#[derive(Clone, Debug)]
pub struct BatchInput<'a> {
    /// The model's name for it.
    pub name: &'a str,
    /// Element type.
    pub datatype: Datatype,
    /// `[Σ rows, inner…]` for a batched model, else the only request's shape.
    pub shape: Vec<i64>,
    /// Each request's rows, in the batch's order.
    pub pieces: Vec<Piece<'a>>,
    /// The element that fills pieces up where their inner sizes are less than the shape's.
    pub padding: Option<&'a [u8]>,
}

/// One request's rows of an input.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// `[rows, inner…]`, or as the request has it.
    pub shape: &'a [i64],
    /// Its bytes.
    pub data: &'a [u8],
}

impl BatchInput<'_> {
    /// Bytes of the whole tensor; `None` for BYTES, and where the pieces do not make it up.
    pub fn byte_length(&self) -> Option<usize> {
        let size = self.datatype.element_size()?;
        let bytes = |shape: &[i64]| element_count(shape).ok()?.checked_mul(size);
        let rows = |shape: &[i64]| shape.first().copied().unwrap_or(1);
        let is_whole = self.pieces.iter().map(|piece| rows(piece.shape)).sum::<i64>() == rows(&self.shape)
            && self.pieces.iter().all(|piece| bytes(piece.shape) == Some(piece.data.len()));
        if is_whole { bytes(&self.shape) } else { None }
    }

    /// Copies the pieces one after the other, each filled up to the batch's inner sizes.
    ///
    /// # Panics
    /// When `target` has not [`BatchInput::byte_length`] bytes.
    pub fn copy_to(&self, mut target: &mut [u8]) {
        let mut wide = self.shape.clone();
        for piece in &self.pieces {
            let Some(element) = self.padding else {
                let (here, rest) = target.split_at_mut(piece.data.len());
                here.copy_from_slice(piece.data);
                target = rest;
                continue;
            };
            wide[0] = piece.shape[0];
            let (here, rest) = target.split_at_mut(count(&wide) * element.len());
            widen(here, &wide, piece.data, piece.shape, element);
            target = rest;
        }
    }
}

/// One output of a batch, borrowed from the back end.
#[derive(Clone, Copy, Debug)]
pub struct BatchOutput<'a> {
    /// Element type.
    pub datatype: Datatype,
    /// `[Σ rows, inner…]` for a batched model.
    pub shape: &'a [i64],
    /// Row-major little-endian elements; BYTES are length-prefixed.
    pub data: &'a [u8],
}

/// Outputs or inputs that cannot be stacked or split as the signature promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Requests of one batch disagree on an inner dimension that is not padded; their keys should have prevented it.
    #[error("requests of one batch disagree on the inner shape of input `{0}`")]
    InnerShape(String),
    /// The model's output does not have one row for each row of input.
    #[error(
        "output {index} has shape {shape:?}, not one row for each of the batch's {rows} rows; \
         set max_batch_size = 1 or batch_safe = false in the model's config.toml"
    )]
    Rows {
        /// Output number.
        index: usize,
        /// Its shape.
        shape: Vec<i64>,
        /// Rows of the batch.
        rows: u32,
    },
    /// An output's inner dimension has not the size of the padded input's whose name it has, so that nothing tells which part of
    /// it is a request's own.
    #[error(
        "output {index} has shape {shape:?}, not {wanted} along axis {axis} as the padded input of that dimension's name; leave \
         dynamic_batching.padding out of the model's config.toml"
    )]
    Padded {
        /// Output number.
        index: usize,
        /// Its shape.
        shape: Vec<i64>,
        /// The axis.
        axis: usize,
        /// The batch's size.
        wanted: i64,
    },
}

/// Stacks one input of several requests along axis 0.
///
/// Inputs `[n_i, d1, .., dk]` become `[Σ n_i, d1, .., dk]`; no bytes are copied here. With an element for `padding`, inner sizes may
/// differ, and the batch has the largest of each.
///
/// # Errors
/// [`BatchError::InnerShape`].
pub fn stack<'a>(
    name: &'a str,
    datatype: Datatype,
    parts: impl IntoIterator<Item = (&'a [i64], &'a [u8])>,
    padding: Option<&'a [u8]>,
) -> Result<BatchInput<'a>, BatchError> {
    let pieces: Vec<Piece<'a>> = parts.into_iter().map(|(shape, data)| Piece { shape, data }).collect();
    let mut shape = pieces.first().map_or_else(Vec::new, |first| first.shape.to_vec());
    for piece in pieces.iter().skip(1) {
        match (shape.split_first_mut(), piece.shape.split_first()) {
            (Some((rows, inner)), Some((more, own))) if inner == own => *rows += more,
            (Some((rows, inner)), Some((more, own))) if padding.is_some() && inner.len() == own.len() => {
                *rows += more;
                inner.iter_mut().zip(own).for_each(|(size, own)| *size = (*size).max(*own));
            }
            _ => return Err(BatchError::InnerShape(name.to_owned())),
        }
    }
    Ok(BatchInput { name, datatype, shape, pieces, padding })
}

/// Where each request's rows lie in an output's bytes.
///
/// `rows` are the requests' row counts in the batch's order. A batch of one request takes the whole output as it is,
/// since a model that is not batched may shape its outputs freely.
///
/// # Errors
/// [`BatchError::Rows`].
pub fn split(index: usize, output: &BatchOutput<'_>, rows: &[u32]) -> Result<Vec<Range<usize>>, BatchError> {
    if rows.len() == 1 {
        return Ok(std::iter::once(0..output.data.len()).collect());
    }
    let total: u32 = rows.iter().sum();
    let mismatch = || BatchError::Rows { index, shape: output.shape.to_vec(), rows: total };
    if output.shape.first() != Some(&i64::from(total)) || total == 0 {
        return Err(mismatch());
    }
    if output.datatype == Datatype::Bytes {
        return split_bytes(output, rows).ok_or_else(mismatch);
    }
    let row_bytes = output.data.len() / total as usize;
    let mut start = 0;
    Ok(rows
        .iter()
        .map(|&rows| {
            let range = start..start + rows as usize * row_bytes;
            start = range.end;
            range
        })
        .collect())
}

/// BYTES rows differ in length: walks the length prefixes.
fn split_bytes(output: &BatchOutput<'_>, rows: &[u32]) -> Option<Vec<Range<usize>>> {
    let per_row: i64 = output.shape[1..].iter().product();
    let per_row = usize::try_from(per_row).ok()?;
    let mut elements = BytesElements::new(output.data);
    let mut start = 0;
    rows.iter()
        .map(|&rows| {
            for _ in 0..rows as usize * per_row {
                elements.next()?.ok()?;
            }
            let end = output.data.len() - elements.remaining();
            let range = start..end;
            start = end;
            Some(range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_common::protocol::tensor::push_bytes_element;

    #[test]
    fn rows_are_stacked_and_split_again() {
        let shapes = [vec![1, 2], vec![2, 2]];
        let data = [[1u8, 2].as_slice(), &[3, 4, 5, 6]];
        let parts = shapes.iter().map(Vec::as_slice).zip(data);
        let input = stack("x", Datatype::Uint8, parts, None).unwrap();
        assert_eq!(input.shape, [3, 2]);
        let mut stacked = [0; 6];
        assert_eq!(input.byte_length(), Some(stacked.len()));
        input.copy_to(&mut stacked);
        assert_eq!(stacked, [1, 2, 3, 4, 5, 6]);
        let output = BatchOutput { datatype: Datatype::Uint8, shape: &[3, 2], data: &[1, 2, 3, 4, 5, 6] };
        assert_eq!(split(0, &output, &[1, 2]), Ok(vec![0..2, 2..6]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shapes = [vec![1, 2], vec![1, 3], vec![1]];
        let parts =
            |range: Range<usize>| shapes[range].iter().map(|shape| (shape.as_slice(), [0u8; 2].as_slice()));
        assert!(stack("x", Datatype::Uint8, parts(0..2), None).is_err());
        assert!(stack("x", Datatype::Uint8, parts(1..3), Some(&[0])).is_err());
        let short = stack("x", Datatype::Uint8, parts(0..2), Some(&[0])).unwrap();
        assert_eq!((short.shape.as_slice(), short.byte_length()), ([2, 3].as_slice(), None));
        let output = BatchOutput { datatype: Datatype::Uint8, shape: &[2], data: &[1, 2] };
        assert!(split(0, &output, &[1, 2]).is_err());
        assert_eq!(split(0, &output, &[3]).unwrap()[0], 0..2);
    }

    #[test]
    fn bytes_rows_differ_in_length() {
        let mut data = Vec::new();
        for element in ["a", "", "ccc"] {
            push_bytes_element(&mut data, element.as_bytes());
        }
        let output = BatchOutput { datatype: Datatype::Bytes, shape: &[3, 1], data: &data };
        assert_eq!(split(0, &output, &[1, 2]), Ok(vec![0..5, 5..16]));
    }
}
