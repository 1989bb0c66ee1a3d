//! ONNX Runtime: this file and its folder alone know it.

mod strings;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_common::protocol::tensor::Datatype;
use ort::environment::Environment;
use ort::ep;
use ort::memory::Allocator;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynTensor, DynValue, Outlet, TensorElementType, ValueType};
use tracing::{error, warn};

use super::backend::{Backend, BackendError};
use super::config::{InstanceGroup, InstanceKind};
use super::signature::{Dimension, Signature, Slot};
use crate::guard::watchdog::Stopper;
use crate::schedule::batch::{BatchInput, BatchOutput};

/// Turns ONNX Runtime's telemetry off. Call it first thing in `main`, before the library is loaded and before any thread.
///
/// From 1.29 the library uploads usage data and spools it on disk; its own switch does not stop the thread, this variable
/// does (seen with 1.31.1).
pub fn disable_telemetry() {
    #[expect(unsafe_code, reason = "no other thread exists yet, so nothing reads the environment meanwhile")]
    unsafe {
        std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
    }
}

/// The loaded library. One per process, ever.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// No library at the configured path, or not a usable one.
    #[error(
        "cannot load ONNX Runtime from `{path}`: {reason}; set onnxruntime.library (or MILLRACE__ONNXRUNTIME__LIBRARY) to a libonnxruntime.so of version 1.24 or later, for example the one inside the PyPI wheel `onnxruntime`"
    )]
    Library {
        /// The configured path.
        path: PathBuf,
        /// The loader's reason.
        reason: String,
    },
    /// The file is not a model this library can run.
    #[error("cannot load the model {path}: {reason}")]
    Model {
        /// The file.
        path: PathBuf,
        /// The library's reason.
        reason: String,
    },
    /// An execution provider that was asked for and cannot be had.
    #[error("the {kind} execution provider cannot be had: {reason}; {remedy}")]
    Provider {
        /// The provider.
        kind: &'static str,
        /// The library's reason; it names the missing file.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
}

impl Runtime {
    /// Loads the library.
    ///
    /// # Errors
    /// [`OnnxError::Library`].
    pub fn load(library: &Path) -> Result<Self, OnnxError> {
        let fail = |reason: String| OnnxError::Library { path: library.to_owned(), reason };
        if !library.is_file() {
            return Err(fail("there is no such file".to_owned()));
        }
        let environment = ort::init_from(library)
            .map_err(|error| fail(error.to_string()))?
            .with_name("millrace")
            .with_telemetry(false)
            .build()
            .map_err(|error| fail(error.to_string()))?;
        Ok(Self { environment })
    }

    /// The library's description of itself.
    pub fn description(&self) -> &'static str {
        ort::info()
    }

    /// Loads a model for one instance, on GPU number `gpu` where the group is not for the CPU.
    ///
    /// # Errors
    /// [`OnnxError`].
    pub fn open(&self, file: &Path, group: &InstanceGroup, gpu: u32) -> Result<OnnxBackend, OnnxError> {
        let dynamic = file_has_dynamic_inner_shapes(self, file)?;
        let session = self.session(file, group, gpu, dynamic)?;
        let options = RunOptions::new()
            .map_err(|error| OnnxError::Model { path: file.to_owned(), reason: error.to_string() })?;
        Ok(OnnxBackend {
            signature: signature(&session),
            session,
            options: Arc::new(options),
            _memory: Memory,
        })
    }

    fn session(
        &self,
        file: &Path,
        group: &InstanceGroup,
        gpu: u32,
        dynamic: bool,
    ) -> Result<Session, OnnxError> {
        let fail = |error: ort::Error| {
            let reason = error.to_string();
            match group.kind {
                InstanceKind::Cpu => OnnxError::Model { path: file.to_owned(), reason },
                kind => OnnxError::Provider { kind: kind.as_str(), reason, remedy: remedy(kind) },
            }
        };
        let threads = usize::try_from(group.intra_threads).unwrap_or(1);
        let device = i32::try_from(gpu).unwrap_or(i32::MAX);
        // Named always: left unnamed, the crate sets an automatic policy of its own.
        let cpu = ep::CPU::default().with_arena_allocator(!dynamic).build();
        let providers = match group.kind {
            InstanceKind::Cpu => vec![cpu],
            InstanceKind::Cuda => vec![ep::CUDA::default().with_device_id(device).build().error_on_failure()],
            InstanceKind::TensorRt => {
                vec![ep::TensorRT::default().with_device_id(device).build().error_on_failure()]
            }
        };
        let mut builder = Session::builder(&self.environment)
            .and_then(|builder| Ok(builder.with_execution_providers(providers)?))
            .and_then(|builder| Ok(builder.with_intra_threads(threads)?))
            // Spinning threads cut the throughput to a quarter when another process shares the cores.
            .and_then(|builder| Ok(builder.with_intra_op_spinning(false)?))
            // The arena and the memory pattern grow without bound over changing shapes.
            .and_then(|builder| Ok(builder.with_memory_pattern(!dynamic)?))
            .map_err(fail)?;
        if group.kind != InstanceKind::Cpu && !group.allow_cpu_fallback {
            builder = builder.with_disable_cpu_fallback().map_err(|error| fail(error.into()))?;
        }
        builder.commit_from_file(file).map_err(fail)
    }
}

fn remedy(kind: InstanceKind) -> &'static str {
    match kind {
        InstanceKind::Cpu => "use another ONNX Runtime library",
        InstanceKind::Cuda => {
            "install the GPU build (PyPI `onnxruntime-gpu`) with the CUDA libraries it names on the loader's path, point onnxruntime.library at it, or set kind = \"cpu\" in the model's [[instance_group]]"
        }
        InstanceKind::TensorRt => {
            "install the GPU build (PyPI `onnxruntime-gpu`) and TensorRT 10 (libnvinfer.so.10) on the loader's path, or set kind = \"cuda\" or \"cpu\" in the model's [[instance_group]]"
        }
    }
}

/// Reads the signature alone, on a session that optimises nothing, to decide how the real one manages memory.
fn file_has_dynamic_inner_shapes(runtime: &Runtime, file: &Path) -> Result<bool, OnnxError> {
    let fail = |error: ort::Error| OnnxError::Model { path: file.to_owned(), reason: error.to_string() };
    let session = Session::builder(&runtime.environment)
        .and_then(|builder| Ok(builder.with_execution_providers([ep::CPU::default().build()])?))
        .and_then(|builder| {
            Ok(builder.with_optimization_level(ort::session::builder::GraphOptimizationLevel::Disable)?)
        })
        .and_then(|builder| Ok(builder.with_intra_threads(1)?))
        .and_then(|mut builder| builder.commit_from_file(file))
        .map_err(fail)?;
    let slots = signature(&session);
    Ok(slots.inputs.iter().any(|slot| match &slot.shape {
        None => true,
        Some(_) => slot.open().next().is_some(),
    }))
}

fn signature(session: &Session) -> Signature {
    let slots = |outlets: &[Outlet]| outlets.iter().map(slot).collect();
    Signature { inputs: slots(session.inputs()), outputs: slots(session.outputs()) }
}

fn slot(outlet: &Outlet) -> Slot {
    let (datatype, shape) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, dimension_symbols } => {
            let symbols = dimension_symbols.iter();
            let dimensions = shape.iter().zip(symbols).map(|(&size, symbol)| match size {
                0.. => Dimension::Fixed(size),
                _ => Dimension::Symbolic(symbol.clone()),
            });
            (datatype(*ty).ok_or_else(|| format!("a tensor of {ty:?}")), Some(dimensions.collect()))
        }
        other => (Err(format!("{other}")), None),
    };
    Slot { name: outlet.name().to_owned(), datatype, shape }
}

const DATATYPES: [(Datatype, TensorElementType); 14] = [
    (Datatype::Bool, TensorElementType::Bool),
    (Datatype::Uint8, TensorElementType::Uint8),
    (Datatype::Uint16, TensorElementType::Uint16),
    (Datatype::Uint32, TensorElementType::Uint32),
    (Datatype::Uint64, TensorElementType::Uint64),
    (Datatype::Int8, TensorElementType::Int8),
    (Datatype::Int16, TensorElementType::Int16),
    (Datatype::Int32, TensorElementType::Int32),
    (Datatype::Int64, TensorElementType::Int64),
    (Datatype::Fp16, TensorElementType::Float16),
    (Datatype::Bf16, TensorElementType::Bfloat16),
    (Datatype::Fp32, TensorElementType::Float32),
    (Datatype::Fp64, TensorElementType::Float64),
    (Datatype::Bytes, TensorElementType::String),
];

fn datatype(element: TensorElementType) -> Option<Datatype> {
    DATATYPES.iter().find(|(_, onnx)| *onnx == element).map(|(datatype, _)| *datatype)
}

fn element_type(datatype: Datatype) -> TensorElementType {
    let found = DATATYPES.iter().find(|(wire, _)| *wire == datatype);
    found.expect("every datatype is in the table").1
}

/// One session, owned by one thread.
pub struct OnnxBackend {
    session: Session,
    signature: Signature,
    /// Shared with what may stop a run.
    options: Arc<RunOptions>,
    /// The last field, so that it goes after the session.
    _memory: Memory,
}

/// Gives the memory of what went before it back to the system. The C library, whose allocator ONNX Runtime uses, keeps freed weights:
/// ten swaps of a model of 53 MB left 500 MB (2026-11).
struct Memory;

impl Drop for Memory {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "glibc's own function, which any thread may call at any time")]
    fn drop(&mut self) {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        unsafe { malloc_trim(0) };
    }

    #[cfg(not(target_env = "gnu"))]
    fn drop(&mut self) {}
}

impl Backend for OnnxBackend {
    fn run(
        &mut self,
        inputs: &[BatchInput<'_>],
        read: &mut dyn FnMut(&[Option<BatchOutput<'_>>]),
    ) -> Result<(), BackendError> {
        let values = inputs
            .iter()
            .map(|input| Ok((Cow::Borrowed(input.name), SessionInputValue::Owned(value(input)?))))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let failed = |error: ort::Error| BackendError::Model(error.to_string());
        let outputs = self.session.run_with_options(values, &*self.options).map_err(failed)?;
        // Strings need a framed copy that lives as long as the views.
        let framed = self
            .signature
            .outputs
            .iter()
            .map(|slot| framed(slot, outputs.get(&slot.name)))
            .collect::<Result<Vec<_>, _>>()?;
        let views = self
            .signature
            .outputs
            .iter()
            .zip(&framed)
            .map(|(slot, framed)| match slot.datatype {
                Ok(_) => view(slot, outputs.get(&slot.name), framed.as_deref()).map(Some),
                Err(_) => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        read(&views);
        Ok(())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn stopper(&self) -> Box<dyn Stopper> {
        Box::new(OnnxStopper(Arc::clone(&self.options)))
    }
}

struct OnnxStopper(Arc<RunOptions>);

impl Stopper for OnnxStopper {
    fn stop(&self) {
        if let Err(error) = self.0.terminate() {
            warn!(%error, "cannot stop a run");
        }
    }

    fn allow(&self) {
        if let Err(error) = self.0.unterminate() {
            error!(%error, "cannot run any more after a run that was stopped");
        }
    }
}

/// Copies an input's pieces into a tensor: the one copy on the way in.
fn value(input: &BatchInput<'_>) -> Result<DynValue, BackendError> {
    let fail =
        |error: ort::Error| BackendError::Input { name: input.name.to_owned(), problem: error.to_string() };
    if input.datatype == Datatype::Bytes {
        return strings::value(input);
    }
    let mut tensor = DynTensor::new(&Allocator::default(), element_type(input.datatype), input.shape.clone())
        .map_err(fail)?;
    let capacity = element_type(input.datatype).byte_size(tensor.shape().num_elements());
    let Some(length) = input.byte_length().filter(|&length| capacity == Some(length)) else {
        let problem = format!("its bytes do not make up shape {:?}", input.shape);
        return Err(BackendError::Input { name: input.name.to_owned(), problem });
    };
    if length > 0 {
        #[expect(
            unsafe_code,
            reason = "the tensor was just made with exactly `length` bytes, and nobody else has it"
        )]
        let target = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr_mut().cast::<u8>(), length) };
        input.copy_to(target);
    }
    Ok(tensor.into_dyn())
}

/// The elements of a BYTES output; `None` for other datatypes.
fn framed(slot: &Slot, value: Option<&DynValue>) -> Result<Option<Vec<u8>>, BackendError> {
    if slot.datatype != Ok(Datatype::Bytes) {
        return Ok(None);
    }
    strings::framed(value.ok_or_else(|| missing(slot))?).map(Some)
}

fn missing(slot: &Slot) -> BackendError {
    BackendError::Model(format!("output `{}` was not produced", slot.name))
}

fn view<'a>(
    slot: &Slot,
    value: Option<&'a DynValue>,
    framed: Option<&'a [u8]>,
) -> Result<BatchOutput<'a>, BackendError> {
    let value = value.ok_or_else(|| missing(slot))?;
    let unsupported = || BackendError::Output { name: slot.name.clone(), found: value.dtype().to_string() };
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else { return Err(unsupported()) };
    let datatype = datatype(*ty).ok_or_else(unsupported)?;
    let data = match framed {
        Some(framed) => framed,
        None => {
            let length = ty.byte_size(shape.num_elements()).ok_or_else(unsupported)?;
            bytes_of(value, length)?
        }
    };
    Ok(BatchOutput { datatype, shape, data })
}

/// The tensor's memory. `length` must be its size in bytes.
fn bytes_of(value: &DynValue, length: usize) -> Result<&[u8], BackendError> {
    let tensor = value
        .view()
        .downcast::<ort::value::DynTensorValueType>()
        .map_err(|error| BackendError::Model(error.to_string()))?;
    let pointer = tensor.data_ptr().cast::<u8>();
    if length == 0 || pointer.is_null() {
        return Ok(&[]);
    }
    #[expect(
        unsafe_code,
        reason = "a CPU tensor of this shape and type has `length` bytes, alive as long as `value`"
    )]
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}
