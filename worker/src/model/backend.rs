//! What any back end does: one batch in, outputs read where they lie.

use std::time::Duration;

use millrace_common::protocol::status::Code;

use super::signature::Signature;
use crate::guard::watchdog::Stopper;
use crate::schedule::batch::{BatchInput, BatchOutput};

/// Runs batches. Owned by one thread.
pub trait Backend: Send {
    /// Runs one batch and hands the outputs, in the signature's order, to `read` while they are still in place. An output of
    /// a type that the protocol cannot carry is `None`.
    ///
    /// # Errors
    /// [`BackendError`]; `read` has not been called then.
    fn run(
        &mut self,
        inputs: &[BatchInput<'_>],
        read: &mut dyn FnMut(&[Option<BatchOutput<'_>>]),
    ) -> Result<(), BackendError>;

    /// The model's inputs and outputs.
    fn signature(&self) -> &Signature;

    /// What ends its runs from another thread; one that is stopped fails. One that never ends can else only be ended with its process.
    fn stopper(&self) -> Box<dyn Stopper>;
}

/// A run that gave no outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The model failed on this input.
    #[error("the model failed: {0}")]
    Model(String),
    /// An input that the runtime cannot take, although it has the right type and shape.
    #[error("input `{name}`: {problem}")]
    Input {
        /// Input name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The run was stopped: it took too long.
    #[error("the model did not answer within {limit:?}")]
    Timeout {
        /// How long it may take.
        limit: Duration,
    },
    /// An output of a type that the protocol cannot carry.
    #[error("output `{name}` is {found}, which the protocol cannot carry")]
    Output {
        /// Output name.
        name: String,
        /// Its ONNX type.
        found: String,
    },
}

impl BackendError {
    /// The code the caller gets.
    pub fn code(&self) -> Code {
        match self {
            Self::Model(_) => Code::BackendError,
            Self::Timeout { .. } => Code::BackendTimeout,
            Self::Input { .. } | Self::Output { .. } => Code::InvalidInput,
        }
    }
}
