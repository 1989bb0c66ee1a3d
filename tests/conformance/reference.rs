//! The judge: ONNX Runtime called directly, with none of the worker's code.

use std::path::Path;

use half::{bf16, f16};
use millrace_producer::{Datatype, Tensor};
use ort::environment::Environment;
use ort::ep;
use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, ValueType};

use crate::case::{Case, DataSet, Value, framed};

/// The library, loaded into this process.
pub(crate) struct Reference {
    environment: Environment,
}

/// A case and what a direct run makes of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) case: Case,
    pub(crate) expected: Expected,
}

/// What the worker must do with a case.
#[derive(Debug)]
pub(crate) enum Expected {
    /// Nothing: the library does not load the model, so no worker could start with it.
    Refused(String),
    /// Refuse each request, because the model takes or gives this, which the protocol cannot carry.
    Unsupported(String),
    /// Report that the model failed.
    RunFails(String),
    /// Give these bits, a list for each data set.
    Outputs(Vec<Vec<Tensor>>),
}

impl Reference {
    /// Loads the library; once a process.
    pub(crate) fn load(library: &Path) -> Self {
        let builder = ort::init_from(library).unwrap().with_name("conformance").with_telemetry(false);
        Self { environment: builder.build().unwrap() }
    }

    /// Runs a case.
    pub(crate) fn prepare(&self, case: Case) -> Prepared {
        let expected = match self.open(&case.file) {
            Err(reason) => Expected::Refused(reason),
            Ok(session) => run_all(session, &case),
        };
        Prepared { case, expected }
    }

    /// One intra-op thread, as the workers of this test; everything else as the library has it.
    fn open(&self, file: &Path) -> Result<Session, String> {
        let cpu = ep::CPU::default().with_arena_allocator(true).build();
        Session::builder(&self.environment)
            .and_then(|builder| Ok(builder.with_execution_providers([cpu])?))
            .and_then(|builder| Ok(builder.with_intra_threads(1)?))
            .and_then(|mut builder| builder.commit_from_file(file))
            .map_err(|error| error.to_string())
    }
}

fn run_all(mut session: Session, case: &Case) -> Expected {
    let mut values = case.sets.iter().flat_map(|set| set.inputs.iter().chain(&set.outputs));
    if let Some(kind) = values.find_map(Value::foreign) {
        return Expected::Unsupported(kind.to_owned());
    }
    let runs: Result<Vec<_>, _> = case.sets.iter().map(|set| run(&mut session, set)).collect();
    match runs {
        Ok(outputs) => Expected::Outputs(outputs),
        Err(error) => Expected::RunFails(error.to_string()),
    }
}

fn run(session: &mut Session, set: &DataSet) -> ort::Result<Vec<Tensor>> {
    let inputs = set.inputs.iter().filter_map(Value::tensor);
    let values = inputs
        .map(|input| Ok((input.name.clone(), SessionInputValue::from(value(input)?))))
        .collect::<ort::Result<Vec<_>>>()?;
    let names: Vec<String> = session.outputs().iter().map(|output| output.name().to_owned()).collect();
    let outputs = session.run(values)?;
    names.iter().map(|name| tensor(name, &outputs[name.as_str()])).collect()
}

fn value(tensor: &Tensor) -> ort::Result<DynValue> {
    match tensor.datatype {
        Datatype::Bool => numbers(tensor, |[byte]: [u8; 1]| byte != 0),
        Datatype::Uint8 => numbers(tensor, u8::from_le_bytes),
        Datatype::Uint16 => numbers(tensor, u16::from_le_bytes),
        Datatype::Uint32 => numbers(tensor, u32::from_le_bytes),
        Datatype::Uint64 => numbers(tensor, u64::from_le_bytes),
        Datatype::Int8 => numbers(tensor, i8::from_le_bytes),
        Datatype::Int16 => numbers(tensor, i16::from_le_bytes),
        Datatype::Int32 => numbers(tensor, i32::from_le_bytes),
        Datatype::Int64 => numbers(tensor, i64::from_le_bytes),
        Datatype::Fp16 => numbers(tensor, f16::from_le_bytes),
        Datatype::Bf16 => numbers(tensor, bf16::from_le_bytes),
        Datatype::Fp32 => numbers(tensor, f32::from_le_bytes),
        Datatype::Fp64 => numbers(tensor, f64::from_le_bytes),
        Datatype::Bytes => {
            let elements = tensor.bytes_elements().map(|element| {
                String::from_utf8(element.unwrap().to_vec()).expect("the cases' strings are UTF-8")
            });
            let elements: Vec<String> = elements.collect();
            let strings = ort::value::Tensor::from_string_array((tensor.shape.clone(), elements.as_slice()))?;
            Ok(strings.into_dyn())
        }
    }
}

/// In memory of the library's own allocator: kernels that vectorise from the first aligned element add in another order
/// where the alignment differs.
fn numbers<T, const N: usize>(tensor: &Tensor, read: impl Fn([u8; N]) -> T) -> ort::Result<DynValue>
where
    T: PrimitiveTensorElementType + std::fmt::Debug,
{
    let mut value = ort::value::Tensor::<T>::new(&Allocator::default(), tensor.shape.clone())?;
    let (elements, rest) = tensor.data.as_chunks::<N>();
    assert!(rest.is_empty());
    for (target, bytes) in value.extract_tensor_mut().1.iter_mut().zip(elements) {
        *target = read(*bytes);
    }
    Ok(value.into_dyn())
}

fn tensor(name: &str, value: &DynValue) -> ort::Result<Tensor> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else { panic!("`{name}` is no tensor") };
    let (datatype, data) = match ty {
        TensorElementType::Bool => (Datatype::Bool, bytes(value, |bit: bool| [u8::from(bit)])?),
        TensorElementType::Uint8 => (Datatype::Uint8, bytes(value, u8::to_le_bytes)?),
        TensorElementType::Uint16 => (Datatype::Uint16, bytes(value, u16::to_le_bytes)?),
        TensorElementType::Uint32 => (Datatype::Uint32, bytes(value, u32::to_le_bytes)?),
        TensorElementType::Uint64 => (Datatype::Uint64, bytes(value, u64::to_le_bytes)?),
        TensorElementType::Int8 => (Datatype::Int8, bytes(value, i8::to_le_bytes)?),
        TensorElementType::Int16 => (Datatype::Int16, bytes(value, i16::to_le_bytes)?),
        TensorElementType::Int32 => (Datatype::Int32, bytes(value, i32::to_le_bytes)?),
        TensorElementType::Int64 => (Datatype::Int64, bytes(value, i64::to_le_bytes)?),
        TensorElementType::Float16 => (Datatype::Fp16, bytes(value, f16::to_le_bytes)?),
        TensorElementType::Bfloat16 => (Datatype::Bf16, bytes(value, bf16::to_le_bytes)?),
        TensorElementType::Float32 => (Datatype::Fp32, bytes(value, f32::to_le_bytes)?),
        TensorElementType::Float64 => (Datatype::Fp64, bytes(value, f64::to_le_bytes)?),
        TensorElementType::String => (Datatype::Bytes, framed(&value.try_extract_strings()?.1)),
        other => panic!("`{name}` is a tensor of {other}, declared as something the protocol can carry"),
    };
    Ok(Tensor::new(name, datatype, shape.to_vec(), data.into()).unwrap())
}

fn bytes<T, const N: usize>(value: &DynValue, write: impl Fn(T) -> [u8; N]) -> ort::Result<Vec<u8>>
where
    T: PrimitiveTensorElementType + Copy,
{
    Ok(value.try_extract_tensor::<T>()?.1.iter().flat_map(|&element| write(element)).collect())
}
