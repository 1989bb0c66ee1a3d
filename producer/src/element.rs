//! Rust element types and the datatypes they stand for.

use half::{bf16, f16};
use millrace_common::protocol::tensor::Datatype;

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is an element of a tensor. BYTES has none: use raw [`crate::Tensor`]s.
pub trait Element: sealed::Sealed + Copy + 'static {
    /// The protocol's datatype.
    const DATATYPE: Datatype;

    /// Appends the element's little-endian bytes.
    fn write(self, out: &mut Vec<u8>);

    /// Reads the element from exactly its number of bytes.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty = $datatype:ident;)+) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DATATYPE: Datatype = Datatype::$datatype;
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }
        }
    )+};
}

numbers! {
    u8 = Uint8;
    u16 = Uint16;
    u32 = Uint32;
    u64 = Uint64;
    i8 = Int8;
    i16 = Int16;
    i32 = Int32;
    i64 = Int64;
    f16 = Fp16;
    bf16 = Bf16;
    f32 = Fp32;
    f64 = Fp64;
}

impl sealed::Sealed for bool {}
impl Element for bool {
    const DATATYPE: Datatype = Datatype::Bool;
    fn write(self, out: &mut Vec<u8>) {
        out.push(u8::from(self));
    }
    fn read(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
}
