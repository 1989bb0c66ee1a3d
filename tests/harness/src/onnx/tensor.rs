//! Tensor values: out of a [`TensorProto`] wherever they lie, and into one.

use anyhow::{Context, Result, ensure};

use super::{DataType, StringStringEntryProto, TensorProto};

/// The values of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorData {
    /// Fixed-width elements, row-major, little-endian, without padding.
    Raw(Vec<u8>),
    /// The elements of a `STRING` tensor, row-major.
    Strings(Vec<Vec<u8>>),
}

/// ONNX data type, shape and values of a tensor, whichever field holds them.
///
/// # Errors If the data type is unknown or narrower than a byte, if a dimension is negative, or if the number
/// of values differs from the shape's (which is also how external data shows: this reader sees no values
/// then).
pub fn tensor_bytes(tensor: &TensorProto) -> Result<(i32, Vec<i64>, TensorData)> {
    let name = &tensor.name;
    let data_type = DataType::try_from(tensor.data_type)
        .with_context(|| format!("tensor `{name}`: unknown data type {}", tensor.data_type))?;
    let elements =
        element_count(&tensor.dims).with_context(|| format!("tensor `{name}`: shape {:?}", tensor.dims))?;
    let data = if data_type == DataType::String {
        ensure!(
            tensor.string_data.len() == elements,
            "tensor `{name}`: shape {:?} but {} strings",
            tensor.dims,
            tensor.string_data.len()
        );
        TensorData::Strings(tensor.string_data.clone())
    } else {
        let width = data_type
            .byte_width()
            .with_context(|| format!("tensor `{name}`: {data_type:?} has no whole number of bytes"))?;
        let raw = if tensor.raw_data.is_empty() {
            typed_bytes(tensor, data_type, width)
        } else {
            tensor.raw_data.clone()
        };
        ensure!(
            elements.checked_mul(width) == Some(raw.len()),
            "tensor `{name}`: shape {:?} of {data_type:?} but {} bytes",
            tensor.dims,
            raw.len()
        );
        TensorData::Raw(raw)
    };
    Ok((tensor.data_type, tensor.dims.clone(), data))
}

fn element_count(dims: &[i64]) -> Result<usize> {
    dims.iter().try_fold(1_usize, |count, dim| {
        count.checked_mul(usize::try_from(*dim)?).context("more elements than memory can address")
    })
}

/// The typed field's values as bytes.
///
/// `int32_data` and `uint64_data` carry narrower types too, a value each: the low bytes are the value, for
/// 16-bit floats and bytes-wide types as for integers (comments of `TensorProto` in `onnx.proto3`).
fn typed_bytes(tensor: &TensorProto, data_type: DataType, width: usize) -> Vec<u8> {
    match data_type {
        DataType::Float | DataType::Complex64 => {
            tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        DataType::Double | DataType::Complex128 => {
            tensor.double_data.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        DataType::Int64 => tensor.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DataType::Uint32 | DataType::Uint64 => {
            tensor.uint64_data.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)).collect()
        }
        _ => tensor.int32_data.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)).collect(),
    }
}

impl TensorProto {
    /// An FP32 tensor, its values in `raw_data`.
    pub fn of_f32(name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::of_raw(name, DataType::Float, dims, raw_data)
    }

    /// An INT64 tensor, its values in `raw_data`.
    pub fn of_i64(name: &str, dims: &[i64], values: &[i64]) -> Self {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::of_raw(name, DataType::Int64, dims, raw_data)
    }

    /// `data_location` of values in a file of their own.
    pub const EXTERNAL: i32 = 1;

    /// An FP32 tensor, its values in a file at this path from the model's.
    pub fn in_file(name: &str, dims: &[i64], location: &str) -> Self {
        let location = StringStringEntryProto { key: "location".to_owned(), value: location.to_owned() };
        Self {
            external_data: vec![location],
            data_location: Self::EXTERNAL,
            ..Self::of_raw(name, DataType::Float, dims, Vec::new())
        }
    }

    fn of_raw(name: &str, data_type: DataType, dims: &[i64], raw_data: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            data_type: data_type.into(),
            dims: dims.to_vec(),
            raw_data,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(data_type: DataType, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: data_type.into(), dims: dims.to_vec(), ..TensorProto::default() }
    }

    fn raw(tensor: &TensorProto) -> Vec<u8> {
        match tensor_bytes(tensor).expect("a readable tensor") {
            (_, _, TensorData::Raw(raw)) => raw,
            (_, _, TensorData::Strings(_)) => panic!("strings out of a fixed-width tensor"),
        }
    }

    #[test]
    fn typed_fields_read_as_little_endian() {
        for data_type in [DataType::Int16, DataType::Uint16, DataType::Float16, DataType::Bfloat16] {
            let tensor = TensorProto { int32_data: vec![0x3c00, 0x00ff], ..tensor(data_type, &[2]) };
            assert_eq!(raw(&tensor), [0x00, 0x3c, 0xff, 0x00], "{data_type:?}");
        }
        for data_type in [DataType::Bool, DataType::Uint8, DataType::Int8, DataType::Float8e5m2] {
            let tensor = TensorProto { int32_data: vec![1, 0], ..tensor(data_type, &[2, 1]) };
            assert_eq!(raw(&tensor), [1, 0], "{data_type:?}");
        }
        let cases = [
            (TensorProto { int32_data: vec![-1], ..tensor(DataType::Int8, &[1]) }, vec![0xff]),
            (TensorProto { int32_data: vec![-2], ..tensor(DataType::Int16, &[1]) }, vec![0xfe, 0xff]),
            (
                TensorProto { int32_data: vec![-2], ..tensor(DataType::Int32, &[1]) },
                (-2_i32).to_le_bytes().to_vec(),
            ),
            (
                TensorProto { int64_data: vec![-2], ..tensor(DataType::Int64, &[1]) },
                (-2_i64).to_le_bytes().to_vec(),
            ),
            (TensorProto { uint64_data: vec![7], ..tensor(DataType::Uint32, &[1]) }, vec![7, 0, 0, 0]),
            (TensorProto { uint64_data: vec![u64::MAX], ..tensor(DataType::Uint64, &[1]) }, vec![0xff; 8]),
            (
                TensorProto { float_data: vec![1.5], ..tensor(DataType::Float, &[]) },
                1.5_f32.to_le_bytes().to_vec(),
            ),
            (
                TensorProto { double_data: vec![1.5], ..tensor(DataType::Double, &[1]) },
                1.5_f64.to_le_bytes().to_vec(),
            ),
            (TensorProto { float_data: vec![0.0; 2], ..tensor(DataType::Complex64, &[1]) }, vec![0; 8]),
        ];
        for (tensor, expected) in cases {
            assert_eq!(raw(&tensor), expected, "{tensor:?}");
        }
    }

    #[test]
    fn raw_data_is_taken_as_it_is() {
        let tensor = TensorProto::of_i64("t", &[2], &[1, -1]);
        let expected = [1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(tensor_bytes(&tensor).unwrap(), (7, vec![2], TensorData::Raw(expected.to_vec())));
    }

    #[test]
    fn empty_tensors_and_strings() {
        assert_eq!(raw(&tensor(DataType::Float, &[0, 3])), Vec::<u8>::new());
        let strings =
            TensorProto { string_data: vec![b"a".to_vec(), vec![]], ..tensor(DataType::String, &[2]) };
        let expected = TensorData::Strings(vec![b"a".to_vec(), vec![]]);
        assert_eq!(tensor_bytes(&strings).unwrap(), (8, vec![2], expected));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cases = [
            tensor(DataType::Float, &[1]),
            tensor(DataType::String, &[1]),
            tensor(DataType::Float, &[-1]),
            tensor(DataType::Float, &[i64::MAX, i64::MAX]),
            tensor(DataType::Int4, &[0]),
            tensor(DataType::Undefined, &[0]),
            TensorProto { data_type: 99, ..TensorProto::default() },
            TensorProto { raw_data: vec![0; 5], ..tensor(DataType::Float, &[1]) },
        ];
        for tensor in cases {
            assert!(tensor_bytes(&tensor).is_err(), "{tensor:?}");
        }
    }
}
