//! Element types: their ONNX numbers, their protocol names and their widths.

/// Element types, by their numbers in `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DataType {
    Undefined = 0,
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8e4m3fn = 17,
    Float8e4m3fnuz = 18,
    Float8e5m2 = 19,
    Float8e5m2fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4e2m1 = 23,
    Float8e8m0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6e2m3 = 27,
    Float6e3m2 = 28,
}

impl DataType {
    /// The type the Open Inference Protocol calls `datatype`, such as `FP32` or `BYTES`.
    pub fn from_oip(datatype: &str) -> Option<Self> {
        Some(match datatype {
            "BOOL" => Self::Bool,
            "UINT8" => Self::Uint8,
            "UINT16" => Self::Uint16,
            "UINT32" => Self::Uint32,
            "UINT64" => Self::Uint64,
            "INT8" => Self::Int8,
            "INT16" => Self::Int16,
            "INT32" => Self::Int32,
            "INT64" => Self::Int64,
            "FP16" => Self::Float16,
            "BF16" => Self::Bfloat16,
            "FP32" => Self::Float,
            "FP64" => Self::Double,
            "BYTES" => Self::String,
            _ => return None,
        })
    }

    /// Bytes an element takes; `None` for strings and for types narrower than a byte.
    pub fn byte_width(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Float8e4m3fn | Self::Float8e4m3fnuz | Self::Float8e5m2 => Some(1),
            Self::Float8e5m2fnuz | Self::Float8e8m0 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Float => Some(4),
            Self::Uint64 | Self::Int64 | Self::Double | Self::Complex64 => Some(8),
            Self::Complex128 => Some(16),
            Self::Undefined | Self::String => None,
            Self::Uint4 | Self::Int4 | Self::Float4e2m1 | Self::Uint2 | Self::Int2 => None,
            Self::Float6e2m3 | Self::Float6e3m2 => None,
        }
    }
}
