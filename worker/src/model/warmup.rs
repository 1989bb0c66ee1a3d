//! Warm-up: runs on invented inputs before the first request, at the smallest and the largest batch.

use std::time::{Duration, Instant};

use millrace_common::protocol::tensor::{Datatype, push_bytes_element};

use super::backend::{Backend, BackendError};
use super::signature::{Dimension, Slot};
use crate::inbound::admission::Rules;
use crate::schedule::batch::{BatchInput, Piece};

/// Inputs larger than this are not invented: open dimensions say nothing about what is usual.
const MAX_BYTES: usize = 256 << 20;

/// Runs the model on zeros and empty strings, open dimensions 1. Returns the rows of each run, and how long it took.
///
/// # Errors
/// The back end's; a model may rightly refuse zeros.
pub fn run(backend: &mut dyn Backend, rules: &Rules) -> Result<Vec<(u32, Duration)>, BackendError> {
    let sizes = if rules.is_batched { vec![1, rules.max_batch_size] } else { vec![1] };
    let mut took = Vec::with_capacity(sizes.len());
    // The first run of a size pays for what is made lazily; the second one tells what it costs.
    for (rows, counts) in sizes.into_iter().flat_map(|rows| [(rows, false), (rows, true)]) {
        let Some(data) =
            rules.signature.inputs.iter().map(|slot| zeros(slot, rows.into())).collect::<Option<Vec<_>>>()
        else {
            return Ok(Vec::new()); // the protocol cannot carry this model's inputs anyway
        };
        let inputs: Vec<BatchInput<'_>> = rules
            .signature
            .inputs
            .iter()
            .zip(&data)
            .map(|(slot, (datatype, shape, bytes))| BatchInput {
                name: &slot.name,
                datatype: *datatype,
                shape: shape.clone(),
                pieces: vec![Piece { shape, data: bytes }],
                padding: None,
            })
            .collect();
        let started = Instant::now();
        backend.run(&inputs, &mut |_| {})?;
        if counts {
            took.push((rows, started.elapsed()));
        }
    }
    Ok(took)
}

fn zeros(slot: &Slot, rows: i64) -> Option<(Datatype, Vec<i64>, Vec<u8>)> {
    let datatype = *slot.datatype.as_ref().ok()?;
    let dimensions = slot.shape.as_ref()?.iter().enumerate();
    let shape: Vec<i64> = dimensions
        .map(|(axis, dimension)| match dimension {
            Dimension::Fixed(size) => *size,
            Dimension::Symbolic(_) if axis == 0 => rows,
            Dimension::Symbolic(_) => 1,
        })
        .collect();
    let elements = millrace_common::protocol::tensor::element_count(&shape).ok()?;
    let size =
        elements.checked_mul(datatype.element_size().unwrap_or(4)).filter(|&size| size <= MAX_BYTES)?;
    let mut bytes = vec![0; size];
    if datatype == Datatype::Bytes {
        bytes.clear();
        for _ in 0..elements {
            push_bytes_element(&mut bytes, b"");
        }
    }
    Some((datatype, shape, bytes))
}
