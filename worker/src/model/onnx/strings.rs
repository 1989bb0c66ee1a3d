//! BYTES tensors. ONNX calls their elements strings, the runtime takes any bytes without a NUL, and so does the protocol;
//! only the crate's own reader insists on UTF-8.

use millrace_common::protocol::tensor::{BytesElements, push_bytes_element};
use ort::value::{DynTensorValueType, DynValue, Tensor, Utf8Data, Value};
use ort::{AsPointer, Error};

use super::BackendError;
use crate::schedule::batch::BatchInput;

/// An element on its way in.
#[derive(Clone)]
struct Element(Vec<u8>);

impl Utf8Data for Element {
    fn as_utf8_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Copies an input's elements into a tensor.
pub(super) fn value(input: &BatchInput<'_>) -> Result<DynValue, BackendError> {
    let fail = |problem: String| BackendError::Input { name: input.name.to_owned(), problem };
    let mut elements = Vec::new();
    for piece in &input.pieces {
        for element in BytesElements::new(piece.data) {
            let element = element.map_err(|error| fail(error.to_string()))?;
            if element.contains(&0) {
                return Err(fail(
                    "an element contains a NUL byte, which ONNX Runtime cannot take".to_owned(),
                ));
            }
            elements.push(Element(element.to_vec()));
        }
    }
    Tensor::from_string_array((input.shape.clone(), elements.as_slice()))
        .map(Value::into_dyn)
        .map_err(|error| fail(error.to_string()))
}

/// Copies an output's elements out, each behind its length.
pub(super) fn framed(value: &DynValue) -> Result<Vec<u8>, BackendError> {
    let fail = |error: Error| BackendError::Model(error.to_string());
    let tensor = value.view().downcast::<DynTensorValueType>().map_err(fail)?;
    let count = tensor.shape().num_elements();
    let mut total = 0;
    let mut starts = vec![0; count];
    #[expect(
        unsafe_code,
        reason = "the value is a tensor, alive here; the runtime refuses one that is not of strings"
    )]
    unsafe { Error::result_from_status((ort::api().GetStringTensorDataLength)(tensor.ptr(), &mut total)) }
        .map_err(fail)?;
    let mut text = vec![0; total];
    #[expect(unsafe_code, reason = "as above; both buffers have the sizes that are given with them")]
    unsafe {
        Error::result_from_status((ort::api().GetStringTensorContent)(
            tensor.ptr(),
            text.as_mut_ptr().cast(),
            total,
            starts.as_mut_ptr(),
            count,
        ))
    }
    .map_err(fail)?;
    let ends = starts.iter().skip(1).copied().chain([total]);
    let mut framed = Vec::with_capacity(total + 4 * count);
    for (&start, end) in starts.iter().zip(ends) {
        push_bytes_element(&mut framed, &text[start..end]);
    }
    Ok(framed)
}
