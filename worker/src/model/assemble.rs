//! Requests to a batch, and its outputs to their answers. Plain code; runs on instance threads.

use std::borrow::Cow;

use millrace_common::amqp::message::Timing;
use millrace_common::protocol::codec::{ResponseHead, TensorView, encode_response};
use millrace_common::protocol::status::Code;

use crate::catalogue::ServedVersion;
use crate::job::{Answer, Job};
use crate::schedule::batch::{BatchError, BatchInput, BatchOutput, split, stack};
use crate::schedule::runs::cut;

/// The inputs of a batch: its requests' rows, one after the other.
pub(super) fn stacked<'a>(
    served: &'a ServedVersion,
    batch: &'a [Job],
) -> Result<Vec<BatchInput<'a>>, BatchError> {
    let slots = served.rules.signature.inputs.iter().enumerate();
    slots
        .map(|(index, slot)| {
            let parts = batch.iter().map(|job| {
                let tensor = &job.inputs[index];
                (tensor.shape.as_slice(), &tensor.data[..])
            });
            let padding = served.rules.padding.as_ref().and_then(|padding| padding.element(index));
            stack(&slot.name, batch[0].inputs[index].datatype, parts, padding)
        })
        .collect()
}

/// One answer for each request of a batch, in order: its rows of the outputs.
pub(super) fn answers_of(
    served: &ServedVersion,
    batch: &[Job],
    inputs: &[BatchInput<'_>],
    outputs: &[Option<BatchOutput<'_>>],
    max_reply_bytes: usize,
    timing: &dyn Fn(&Job) -> Timing,
) -> Result<Vec<Answer>, BatchError> {
    // Alone, a request gets what the model gives.
    let padding = served.rules.padding.as_ref().filter(|_| batch.len() > 1);
    if let Some(padding) = padding {
        padding.check(inputs, outputs)?;
    }
    let rows: Vec<u32> = batch.iter().map(|job| job.rows).collect();
    let ranges = outputs
        .iter()
        .enumerate()
        .map(|(index, output)| output.as_ref().map_or(Ok(Vec::new()), |output| split(index, output, &rows)))
        .collect::<Result<Vec<_>, _>>()?;
    let output = |index: usize| outputs[index].as_ref().expect("admission lets no other output be asked for");
    let version = served.version.to_string();
    let answers = batch.iter().enumerate().map(|(position, job)| {
        let parts: Vec<(Vec<i64>, Cow<'_, [u8]>)> = job
            .outputs
            .iter()
            .map(|&(index, _)| {
                let data = &output(index).data[ranges[index][position].clone()];
                let mut shape = output(index).shape.to_vec();
                if batch.len() > 1 {
                    shape[0] = i64::from(job.rows);
                }
                let (Some(padding), Some(size)) = (padding, output(index).datatype.element_size()) else {
                    return (shape, Cow::Borrowed(data));
                };
                let wide = shape.clone();
                padding.cut(index, &mut shape, |input, axis| job.inputs[input].shape[axis]);
                let data = cut(data, size, &wide, &shape);
                (shape, data)
            })
            .collect();
        let views: Vec<TensorView<'_>> = job
            .outputs
            .iter()
            .zip(&parts)
            .map(|(&(index, encoding), (shape, data))| TensorView {
                name: &served.rules.signature.outputs[index].name,
                datatype: output(index).datatype,
                shape,
                data,
                encoding,
            })
            .collect();
        let head = ResponseHead {
            model_name: &served.model,
            model_version: Some(&version),
            id: job.body_id.as_deref(),
        };
        let answer = match encode_response(head, &views) {
            Ok(body) if body.bytes.len() > max_reply_bytes => Answer::failure(
                Code::TooLarge,
                format!(
                    "the result has {} bytes, limits.max_body_bytes is {max_reply_bytes}",
                    body.bytes.len()
                ),
            ),
            Ok(body) => Answer::result(body),
            Err(error) => Answer::failure(Code::InvalidInput, error.to_string()),
        };
        Answer { timing: timing(job), model_version: Some(served.version), ..answer }
    });
    Ok(answers.collect())
}
