//! A request as a caller builds it.

use std::time::Duration;

use millrace_common::protocol::codec::Encoding;
use millrace_common::protocol::request::{InferRequest, Parameter, RequestedOutput};
use millrace_common::protocol::tensor::Tensor;
use ndarray::{ArrayView, Dimension};

use crate::element::Element;
use crate::error::RequestError;

/// One inference request: model, tensors, and how it is to be treated.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) model: String,
    pub(crate) version: Option<u64>,
    pub(crate) tier: Option<String>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) is_urgent: bool,
    pub(crate) refuses_degraded: bool,
    pub(crate) encoding: Encoding,
    pub(crate) body: InferRequest,
}

impl Request {
    /// A request to the newest version of `model`, in the configuration's default tier and deadline, in binary.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            version: None,
            tier: None,
            deadline: None,
            correlation_id: None,
            is_urgent: false,
            refuses_degraded: false,
            encoding: Encoding::Binary,
            body: InferRequest::default(),
        }
    }

    /// A request whose body was decoded or built elsewhere.
    pub fn from_body(model: impl Into<String>, body: InferRequest) -> Self {
        Self { body, ..Self::new(model) }
    }

    /// Pins a version.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = Some(version);
        self
    }

    /// Chooses the tier by name.
    #[must_use]
    pub fn tier(mut self, tier: impl Into<String>) -> Self {
        self.tier = Some(tier.into());
        self
    }

    /// How long the caller waits in all, from publishing to the result.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The caller's own id; comes back with the reply, and appears in workers' logs where the request travels by itself.
    #[must_use]
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Goes before the normal requests of its tier.
    #[must_use]
    pub fn urgent(mut self) -> Self {
        self.is_urgent = true;
        self
    }

    /// Wants the model's own answer or none: no other version's, no smaller model's, no default.
    #[must_use]
    pub fn refuse_degraded(mut self) -> Self {
        self.refuses_degraded = true;
        self
    }

    /// Sends tensors as JSON instead of binary, and asks for JSON outputs.
    #[must_use]
    pub fn json(mut self) -> Self {
        self.encoding = Encoding::Json;
        self
    }

    /// Adds an input from raw parts.
    #[must_use]
    pub fn input(mut self, tensor: Tensor) -> Self {
        self.body.inputs.push(tensor);
        self
    }

    /// Adds an input from an array view of any layout; copied once, row-major.
    ///
    /// # Errors
    /// [`RequestError::Tensor`]; cannot happen for arrays that fit memory.
    pub fn input_array<T: Element, D: Dimension>(
        self,
        name: impl Into<String>,
        array: ArrayView<'_, T, D>,
    ) -> Result<Self, RequestError> {
        let name = name.into();
        let mut data = Vec::with_capacity(array.len() * size_of::<T>());
        for &element in &array {
            element.write(&mut data);
        }
        let shape = array.shape().iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        let tensor = Tensor::new(name.clone(), T::DATATYPE, shape, data.into())
            .map_err(|source| RequestError::Tensor { name, source })?;
        Ok(self.input(tensor))
    }

    /// Asks for this output; without any such call all outputs come.
    #[must_use]
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.body.outputs.push(RequestedOutput::new(name));
        self
    }

    /// Sets a parameter of the request.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: Parameter) -> Self {
        self.body.parameters.insert(name.into(), value);
        self
    }
}
