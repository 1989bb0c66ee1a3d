//! A result as a caller reads it.

use millrace_common::amqp::message::{ReplyMeta, Timing};
use millrace_common::protocol::response::InferResponse;
use millrace_common::protocol::tensor::Tensor;
use ndarray::{ArrayD, IxDyn};

use crate::element::Element;
use crate::error::RequestError;
use crate::pack;

/// A model's answer, and where its time went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Outputs, model name and version.
    pub body: InferResponse,
    /// The reply's properties: worker, timing, attempt.
    pub meta: ReplyMeta,
}

impl Response {
    /// The output of this name, raw.
    ///
    /// # Errors
    /// [`RequestError::NoOutput`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor, RequestError> {
        self.body.output(name).ok_or_else(|| RequestError::NoOutput(name.to_owned()))
    }

    /// The output of this name as an array, copied out of the reply.
    ///
    /// # Errors
    /// [`RequestError::NoOutput`], or [`RequestError::Datatype`] when it holds other elements.
    pub fn array<T: Element>(&self, name: &str) -> Result<ArrayD<T>, RequestError> {
        let tensor = self.tensor(name)?;
        if tensor.datatype != T::DATATYPE {
            return Err(RequestError::Datatype {
                name: name.to_owned(),
                actual: tensor.datatype,
                wanted: T::DATATYPE,
            });
        }
        let shape: Vec<usize> = tensor.shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect();
        let elements: Vec<T> = tensor.data.chunks_exact(size_of::<T>()).map(T::read).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(&shape), elements).expect("decoding checked shape against bytes"))
    }

    /// The parts of a response to a pack whose members have these rows; `None` where they do not fit.
    pub(crate) fn parts(&self, rows: &[u32]) -> Option<Vec<Self>> {
        let parts = pack::split(&self.body, rows)?;
        Some(parts.into_iter().map(|body| Self { body, meta: self.meta.clone() }).collect())
    }

    /// The response as an answer to the request that has these ids.
    pub(crate) fn addressed(mut self, correlation_id: Option<String>, body_id: Option<String>) -> Self {
        (self.meta.correlation_id, self.body.id) = (correlation_id, body_id);
        self
    }

    /// What gave the answer instead of the model, and why, as `model:small:1;circuit_open` or `default;failed`; `None` for the model's
    /// own.
    pub fn degraded(&self) -> Option<&str> {
        self.meta.degraded.as_deref()
    }

    /// The worker that ran it.
    pub fn worker(&self) -> &str {
        &self.meta.worker
    }

    /// Where its time in the worker went.
    pub fn timing(&self) -> Timing {
        self.meta.timing
    }
}
