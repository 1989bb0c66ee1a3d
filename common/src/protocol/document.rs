//! The JSON document of a message as it stands: bounded while it is read, tensor data left as text.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

use super::codec::{
    BINARY_DATA, BINARY_DATA_SIZE, MAX_ID_BYTES, MAX_NAME_BYTES, MAX_PARAMETERS, MAX_RANK, MAX_TENSORS,
};
use super::request::{Parameter, Parameters};
use crate::bounded::{Bounded, no_string};

#[derive(serde::Deserialize)]
pub(super) struct RawRequest<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<Text<'a, MAX_ID_BYTES>>,
    #[serde(default)]
    pub(super) parameters: RawParameters,
    #[serde(borrow)]
    pub(super) inputs: Bounded<Object<RawTensor<'a>>, MAX_TENSORS>,
    #[serde(borrow, default)]
    pub(super) outputs: Option<Bounded<Object<RawOutput<'a>>, MAX_TENSORS>>,
}

#[derive(serde::Deserialize)]
pub(super) struct RawResponse<'a> {
    #[serde(borrow)]
    pub(super) model_name: Text<'a, MAX_NAME_BYTES>,
    #[serde(borrow, default)]
    pub(super) model_version: Option<Text<'a, MAX_NAME_BYTES>>,
    #[serde(borrow, default)]
    pub(super) id: Option<Text<'a, MAX_ID_BYTES>>,
    #[serde(borrow)]
    pub(super) outputs: Bounded<Object<RawTensor<'a>>, MAX_TENSORS>,
}

#[derive(serde::Deserialize)]
pub(super) struct RawOutput<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a, MAX_NAME_BYTES>,
    #[serde(default)]
    pub(super) parameters: BinaryParameters,
}

#[derive(serde::Deserialize)]
pub(super) struct RawTensor<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a, MAX_NAME_BYTES>,
    pub(super) shape: Bounded<Dimension, MAX_RANK>,
    #[serde(borrow)]
    pub(super) datatype: Text<'a, 32>,
    #[serde(default)]
    pub(super) parameters: BinaryParameters,
    #[serde(borrow, default)]
    pub(super) data: Option<&'a RawValue>,
}

/// A JSON object. The derived `Deserialize` of a struct would take an array of its fields in order as well.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<T, E> {
                Err(no_string(&self))
            }
        }
        deserializer.deserialize_any(Members(PhantomData)).map(Self)
    }
}

/// One entry of a shape.
pub(super) struct Dimension(pub(super) i64);

impl<'de> Deserialize<'de> for Dimension {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = i64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a dimension")
            }
            fn visit_i64<E: serde::de::Error>(self, size: i64) -> Result<i64, E> {
                Ok(size)
            }
            fn visit_u64<E: serde::de::Error>(self, size: u64) -> Result<i64, E> {
                i64::try_from(size).map_err(|_| E::invalid_value(Unexpected::Unsigned(size), &self))
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<i64, E> {
                Err(no_string(&self))
            }
        }
        deserializer.deserialize_any(Size).map(Self)
    }
}

/// Text of at most `N` bytes, borrowed where it has no escapes.
pub(super) struct Text<'a, const N: usize>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a, const N: usize> Deserialize<'de> for Text<'a, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<'a, const N: usize>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a, const N: usize> Visitor<'de> for TextVisitor<'a, N> {
            type Value = Cow<'a, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string of at most {N} bytes")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Cow<'a, str>, E> {
                if text.len() > N {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cow<'a, str>, E> {
                if text.len() > N {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor::<N>(PhantomData)).map(Self)
    }
}

/// The `parameters` of a request.
#[derive(Default)]
pub(super) struct RawParameters(pub(super) Parameters);

impl<'de> Deserialize<'de> for RawParameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut parameters = Parameters::new();
        deserializer.deserialize_any(Entries(|name: Cow<'de, str>, value| {
            parameters.insert(name.into_owned(), value).is_none()
        }))?;
        Ok(Self(parameters))
    }
}

/// The `parameters` of a tensor or of a requested output: the two that this codec acts on. The others must be
/// well-formed but are not kept: 64 short ones would take fifteen times the memory of their text.
#[derive(Default)]
pub(super) struct BinaryParameters {
    pub(super) binary_data_size: Option<Parameter>,
    pub(super) binary_data: Option<Parameter>,
}

impl<'de> Deserialize<'de> for BinaryParameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut kept = Self::default();
        deserializer.deserialize_any(Entries(|name: Cow<'de, str>, value| match &*name {
            BINARY_DATA_SIZE => kept.binary_data_size.replace(value).is_none(),
            BINARY_DATA => kept.binary_data.replace(value).is_none(),
            _ => true,
        }))?;
        Ok(kept)
    }
}

/// Reads a `parameters` object, and hands each entry to a function that says whether the name is new to it.
struct Entries<F>(F);

impl<'de, F: FnMut(Cow<'de, str>, Parameter) -> bool> Visitor<'de> for Entries<F> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {MAX_PARAMETERS} scalars")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut entries = 0;
        while let Some((name, value)) = map.next_entry::<Text<'de, MAX_NAME_BYTES>, Parameter>()? {
            entries += 1;
            if entries > MAX_PARAMETERS {
                return Err(A::Error::invalid_length(entries, &self));
            }
            if !(self.0)(name.0, value) {
                return Err(A::Error::custom("a parameter is given twice"));
            }
        }
        Ok(())
    }
    /// Clients that write absent members as null are common.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(no_string(&self))
    }
}
