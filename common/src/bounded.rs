//! Lists of hostile messages, refused while they are read instead of afterwards.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Expected, SeqAccess, Unexpected, Visitor};

/// An array of at most `N` items: refused while reading, before the rest is allocated.
pub(crate) struct Bounded<T, const N: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Items<T, N> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {N} items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = sequence.next_element()? {
                    if items.len() == N {
                        return Err(A::Error::invalid_length(N + 1, &self));
                    }
                    items.push(item);
                }
                Ok(items)
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Vec<T>, E> {
                Err(no_string(&self))
            }
        }
        deserializer.deserialize_any(Items::<T, N>(PhantomData)).map(Self)
    }
}

/// For a field that is a plain list: `#[serde(deserialize_with = "bounded::list::<_, _, N>")]`.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Bounded::<T, N>::deserialize(deserializer).map(|list| list.0)
}

/// Refuses a string where something else belongs.
///
/// A visitor that takes no strings answers them so, and is driven by `deserialize_any`: the defaults of serde
/// and serde_json quote the whole of what they were given, and a caller could make the error as long as the body,
/// several times longer where characters need escapes.
pub(crate) fn no_string<E: Error>(expected: &dyn Expected) -> E {
    E::invalid_type(Unexpected::Other("a string"), expected)
}
