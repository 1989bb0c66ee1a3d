//! Rows stacked for the model, and split again. Plain code; runs on instance threads.

use std::ops::Range;

use millrace_common::protocol::tensor::{BytesElements, Datatype};

/// One input of a batch: pieces of several requests, to be copied one after the other.
#[derive(Clone, Debug)]
pub struct BatchInput<'a> {
    /// The model's name for it.
    pub name: &'a str,
    /// Element type.
    pub datatype: Datatype,
    /// `[Σ rows, inner…]` for a batched model, else the only request's shape.
    pub shape: Vec<i64>,
    /// Each request's bytes, in the batch's order.
    pub pieces: Vec<&'a [u8]>,
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
    /// Requests of one batch disagree on an inner dimension; their keys should have prevented it.
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
}

/// Stacks one input of several requests along axis 0.
///
/// Inputs `[n_i, d1, .., dk]` become `[Σ n_i, d1, .., dk]`; no bytes are copied here.
///
/// # Errors
/// [`BatchError::InnerShape`].
pub fn stack<'a>(
    name: &'a str,
    datatype: Datatype,
    parts: impl IntoIterator<Item = (&'a [i64], &'a [u8])>,
) -> Result<BatchInput<'a>, BatchError> {
    let mut parts = parts.into_iter();
    let (first_shape, first_data) = parts.next().unwrap_or((&[], &[]));
    let mut shape = first_shape.to_vec();
    let mut pieces = vec![first_data];
    for (other, data) in parts {
        match (shape.split_first_mut(), other.split_first()) {
            (Some((rows, inner)), Some((more, other_inner))) if inner == other_inner => *rows += more,
            _ => return Err(BatchError::InnerShape(name.to_owned())),
        }
        pieces.push(data);
    }
    Ok(BatchInput { name, datatype, shape, pieces })
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
        let input = stack("x", Datatype::Uint8, parts).unwrap();
        assert_eq!(input.shape, [3, 2]);
        assert_eq!(input.pieces.concat(), [1, 2, 3, 4, 5, 6]);
        let output = BatchOutput { datatype: Datatype::Uint8, shape: &[3, 2], data: &[1, 2, 3, 4, 5, 6] };
        assert_eq!(split(0, &output, &[1, 2]), Ok(vec![0..2, 2..6]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shapes = [vec![1, 2], vec![1, 3]];
        let parts = shapes.iter().map(|shape| (shape.as_slice(), [0u8; 6].as_slice()));
        assert!(stack("x", Datatype::Uint8, parts).is_err());
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
