//! Tensors: a datatype, a shape, and row-major little-endian bytes.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

macro_rules! datatypes {
    ($($variant:ident = $text:literal, $size:expr;)+) => {
        /// A datatype of the Open Inference Protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "the names are the protocol's own")]
        pub enum Datatype {
            $(#[serde(rename = $text)] $variant,)+
        }

        impl Datatype {
            /// Every datatype.
            pub const ALL: &[Datatype] = &[$(Datatype::$variant,)+];

            /// The protocol's name.
            pub fn as_str(self) -> &'static str {
                match self { $(Datatype::$variant => $text,)+ }
            }

            /// Bytes per element; `None` for BYTES, whose elements vary.
            pub fn element_size(self) -> Option<usize> {
                match self { $(Datatype::$variant => $size,)+ }
            }
        }

        impl FromStr for Datatype {
            type Err = TensorError;
            fn from_str(text: &str) -> Result<Self, TensorError> {
                match text {
                    $($text => Ok(Datatype::$variant),)+
                    other => Err(TensorError::UnknownDatatype(other.chars().take(32).collect())),
                }
            }
        }
    };
}

datatypes! {
    Bool = "BOOL", Some(1);
    Uint8 = "UINT8", Some(1);
    Uint16 = "UINT16", Some(2);
    Uint32 = "UINT32", Some(4);
    Uint64 = "UINT64", Some(8);
    Int8 = "INT8", Some(1);
    Int16 = "INT16", Some(2);
    Int32 = "INT32", Some(4);
    Int64 = "INT64", Some(8);
    Fp16 = "FP16", Some(2);
    Bf16 = "BF16", Some(2);
    Fp32 = "FP32", Some(4);
    Fp64 = "FP64", Some(8);
    Bytes = "BYTES", None;
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tensor whose parts contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A datatype name outside the protocol.
    #[error("unknown datatype `{0}`")]
    UnknownDatatype(String),
    /// A dimension below zero, or a product of dimensions beyond the address space.
    #[error("shape {0:?} has a negative dimension or too many elements")]
    InvalidShape(Vec<i64>),
    /// `shape × element size` is not the number of bytes given.
    #[error("shape {shape:?} of {datatype} needs {expected} bytes, but {actual} are given")]
    LengthMismatch {
        /// Declared shape.
        shape: Vec<i64>,
        /// Declared datatype.
        datatype: Datatype,
        /// Bytes the shape needs.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A BOOL byte that is neither 0 nor 1.
    #[error("BOOL element {index} is {value}, not 0 or 1")]
    InvalidBool {
        /// Element index.
        index: usize,
        /// The byte found.
        value: u8,
    },
    /// BYTES data whose length prefixes do not add up to the shape and the data.
    #[error("BYTES data does not hold exactly {expected} length-prefixed elements")]
    InvalidBytes {
        /// Elements the shape needs.
        expected: usize,
    },
}

/// The number of elements of a shape; 1 for a scalar (`[]`).
///
/// # Errors
/// [`TensorError::InvalidShape`] on a negative dimension or overflow.
pub fn element_count(shape: &[i64]) -> Result<usize, TensorError> {
    let extent = extent(shape)?;
    Ok(if shape.contains(&0) { 0 } else { extent })
}

/// The product of a shape's dimensions without the zeros: what a model may come to hold that reduces or pads an empty axis.
///
/// # Errors
/// [`TensorError::InvalidShape`] on a negative dimension or overflow.
pub fn extent(shape: &[i64]) -> Result<usize, TensorError> {
    let invalid = || TensorError::InvalidShape(shape.to_vec());
    let mut extent = 1usize;
    for &dimension in shape {
        let dimension = usize::try_from(dimension).map_err(|_| invalid())?;
        extent = extent.checked_mul(dimension.max(1)).ok_or_else(invalid)?;
    }
    // What array libraries can address.
    isize::try_from(extent).map_err(|_| invalid())?;
    Ok(extent)
}

/// A named tensor.
///
/// `data` is row-major and little-endian. BYTES elements are each a 4-byte little-endian length followed by that many
/// bytes, as in the binary tensor extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The model's name for this input or output.
    pub name: String,
    /// Element type.
    pub datatype: Datatype,
    /// Dimensions; `[]` is a scalar.
    pub shape: Vec<i64>,
    /// Elements as bytes.
    pub data: Bytes,
}

impl Tensor {
    /// A tensor whose bytes are checked against its shape and datatype.
    ///
    /// # Errors
    /// Any [`TensorError`] but `UnknownDatatype`.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: Vec<i64>,
        data: Bytes,
    ) -> Result<Self, TensorError> {
        let tensor = Self { name: name.into(), datatype, shape, data };
        tensor.check()?;
        Ok(tensor)
    }

    /// Checks bytes against shape and datatype: length, BOOL values, BYTES framing. Reads the data only for those two.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn check(&self) -> Result<(), TensorError> {
        let elements = element_count(&self.shape)?;
        match self.datatype.element_size() {
            Some(size) => {
                let expected = elements
                    .checked_mul(size)
                    .ok_or_else(|| TensorError::InvalidShape(self.shape.clone()))?;
                if expected != self.data.len() {
                    return Err(TensorError::LengthMismatch {
                        shape: self.shape.clone(),
                        datatype: self.datatype,
                        expected,
                        actual: self.data.len(),
                    });
                }
            }
            None => {
                let framed = BytesElements::new(&self.data)
                    .try_fold(0usize, |count, element| element.map(|_| count + 1));
                if framed != Ok(elements) {
                    return Err(TensorError::InvalidBytes { expected: elements });
                }
            }
        }
        if self.datatype == Datatype::Bool
            && let Some(index) = self.data.iter().position(|&b| b > 1)
        {
            return Err(TensorError::InvalidBool { index, value: self.data[index] });
        }
        Ok(())
    }

    /// The elements of a BYTES tensor, in row-major order.
    pub fn bytes_elements(&self) -> BytesElements<'_> {
        BytesElements::new(&self.data)
    }
}

/// Iterates over length-prefixed BYTES elements; an `Err` item ends a truncated sequence.
#[derive(Clone, Debug)]
pub struct BytesElements<'a> {
    rest: &'a [u8],
}

/// BYTES data that ends inside an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("BYTES data ends inside an element")]
pub struct Truncated;

impl<'a> BytesElements<'a> {
    /// Iterates over `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Bytes not yet iterated over.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for BytesElements<'a> {
    type Item = Result<&'a [u8], Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let taken = self.rest.split_first_chunk::<4>().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            rest.split_at_checked(length)
        });
        match taken {
            Some((element, rest)) => {
                self.rest = rest;
                Some(Ok(element))
            }
            None => {
                self.rest = &[];
                Some(Err(Truncated))
            }
        }
    }
}

/// Appends one BYTES element to `data`.
///
/// # Panics
/// When the element is 4 GiB or longer; every limit on the way here is far below.
pub fn push_bytes_element(data: &mut Vec<u8>, element: &[u8]) {
    let length = u32::try_from(element.len()).expect("an element is far smaller than 4 GiB");
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_multiplied_with_care() {
        assert_eq!(element_count(&[]), Ok(1));
        assert_eq!(element_count(&[0, 7]), Ok(0));
        assert_eq!(element_count(&[2, 3]), Ok(6));
        assert!(element_count(&[-1]).is_err());
        assert!(element_count(&[i64::MAX, 3]).is_err());
        assert!(element_count(&[0, i64::MAX, i64::MAX]).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let new = |datatype, shape: &[i64], data: &'static [u8]| {
            Tensor::new("x", datatype, shape.to_vec(), Bytes::from_static(data))
        };
        assert!(new(Datatype::Fp32, &[1], &[0; 4]).is_ok());
        assert!(new(Datatype::Fp32, &[2], &[0; 4]).is_err());
        assert!(new(Datatype::Fp64, &[i64::MAX], &[]).is_err());
        assert_eq!(new(Datatype::Bool, &[2], &[1, 2]), Err(TensorError::InvalidBool { index: 1, value: 2 }));
        assert!(new(Datatype::Bytes, &[1], &[1, 0, 0, 0, b'a']).is_ok());
        assert!(new(Datatype::Bytes, &[2], &[1, 0, 0, 0, b'a']).is_err());
        assert!(new(Datatype::Bytes, &[1], &[255, 255, 255, 255, b'a']).is_err());
        assert!(new(Datatype::Bytes, &[0], &[]).is_ok());
    }
}
