//! The cases on disk: `<case>/model.onnx`, `<case>/test_data_set_<k>/{input,output}_<i>.pb`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_harness::onnx::{
    DataType, Message, ModelProto, TensorData, TensorProto, TypeProto, TypeValue, ValueInfoProto,
    tensor_bytes,
};
use millrace_producer::{Datatype, Tensor};

/// One folder.
#[derive(Debug)]
pub(crate) struct Case {
    /// The folder's name.
    pub(crate) name: String,
    /// The model's name in the repository: at most 64 characters.
    pub(crate) model: String,
    /// `model.onnx`.
    pub(crate) file: PathBuf,
    /// Inputs and outputs, a set a run.
    pub(crate) sets: Vec<DataSet>,
}

/// One run's inputs and the outputs it should give, in the model's order.
#[derive(Debug)]
pub(crate) struct DataSet {
    pub(crate) inputs: Vec<Value>,
    pub(crate) outputs: Vec<Value>,
}

/// A stored value.
#[derive(Debug)]
pub(crate) enum Value {
    /// One that the protocol can carry.
    Tensor(Tensor),
    /// Another type of tensor, a sequence, an optional.
    Foreign {
        /// The model's name for it.
        name: String,
        /// What it is.
        kind: String,
    },
}

impl Value {
    /// The tensor, if the protocol can carry it.
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Foreign { .. } => None,
        }
    }

    /// What it is, if the protocol cannot carry it.
    pub(crate) fn foreign(&self) -> Option<&str> {
        match self {
            Self::Tensor(_) => None,
            Self::Foreign { kind, .. } => Some(kind),
        }
    }
}

impl Case {
    /// Every case in the folder, by name.
    pub(crate) fn all(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        let cases: Vec<Self> =
            folders.iter().enumerate().map(|(number, path)| Self::read(path, number)).collect();
        let models: HashSet<&str> = cases.iter().map(|case| case.model.as_str()).collect();
        assert_eq!(models.len(), cases.len(), "two cases got the same model name");
        cases
    }

    fn read(folder: &Path, number: usize) -> Self {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let short = name.strip_prefix("test_").unwrap_or(&name);
        let model = match short.len() {
            ..=64 => short.to_owned(),
            _ => format!("{}-{number}", &short[..58]),
        };
        let file = folder.join("model.onnx");
        let graph = ModelProto::decode(fs::read(&file).unwrap().as_slice()).unwrap().graph.unwrap();
        let sets: Vec<DataSet> = (0..)
            .map(|k| folder.join(format!("test_data_set_{k}")))
            .take_while(|set| set.is_dir())
            .map(|set| DataSet {
                inputs: values(&set, "input", &graph.input),
                outputs: values(&set, "output", &graph.output),
            })
            .collect();
        assert!(!sets.is_empty() && !graph.output.is_empty(), "{name} has nothing to compare");
        Self { name, model, file, sets }
    }
}

fn values(set: &Path, role: &str, declared: &[ValueInfoProto]) -> Vec<Value> {
    let beyond = set.join(format!("{role}_{}.pb", declared.len()));
    assert!(!beyond.exists(), "{} has no place in the model", beyond.display());
    let path = |index| set.join(format!("{role}_{index}.pb"));
    declared.iter().enumerate().map(|(index, info)| value(&path(index), info)).collect()
}

fn value(path: &Path, info: &ValueInfoProto) -> Value {
    let foreign = |kind: &str| Value::Foreign { name: info.name.clone(), kind: kind.to_owned() };
    let declared = match &info.r#type {
        Some(TypeProto { value: Some(TypeValue::Tensor(declared)) }) => declared,
        Some(TypeProto { value: Some(TypeValue::Sequence(_)) }) => return foreign("sequence"),
        Some(TypeProto { value: Some(TypeValue::Optional(_)) }) => return foreign("optional"),
        other => return foreign(&format!("{other:?}")),
    };
    let Some(datatype) = wire_datatype(declared.elem_type) else {
        let data_type = DataType::try_from(declared.elem_type).map(|known| format!("{known:?}"));
        return foreign(&data_type.unwrap_or_else(|unknown| unknown.to_string()));
    };
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let stored = TensorProto::decode(bytes.as_slice()).unwrap();
    let (data_type, shape, data) = tensor_bytes(&stored).unwrap();
    assert_eq!(data_type, declared.elem_type, "{} is of another type than declared", path.display());
    let data = match data {
        TensorData::Raw(bytes) => bytes,
        TensorData::Strings(elements) => framed(&elements),
    };
    Value::Tensor(Tensor::new(info.name.clone(), datatype, shape, data.into()).unwrap())
}

fn wire_datatype(data_type: i32) -> Option<Datatype> {
    let wanted = DataType::try_from(data_type).ok();
    Datatype::ALL.iter().copied().find(|datatype| DataType::from_oip(datatype.as_str()) == wanted)
}

/// BYTES elements as the binary tensor extension has them.
pub(crate) fn framed<T: AsRef<[u8]>>(elements: &[T]) -> Vec<u8> {
    let mut data = Vec::new();
    for element in elements {
        let element = element.as_ref();
        data.extend_from_slice(&u32::try_from(element.len()).unwrap().to_le_bytes());
        data.extend_from_slice(element);
    }
    data
}
