//! A model's inputs and outputs, and whether its rows can be batched.

use std::collections::BTreeSet;
use std::fmt;

use millrace_common::fleet::TensorSpec;
use millrace_common::protocol::tensor::Datatype;

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Always this size.
    Fixed(i64),
    /// Any size; equal names are equal sizes, an empty name says nothing.
    Symbolic(String),
}

impl Dimension {
    /// Its name, where it has one.
    pub fn symbol(&self) -> Option<&str> {
        match self {
            Self::Symbolic(name) if !name.is_empty() => Some(name),
            _ => None,
        }
    }
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The model's name for it.
    pub name: String,
    /// Element type, or the ONNX type that the protocol cannot carry.
    pub datatype: Result<Datatype, String>,
    /// Dimensions. `None` where the model does not even fix the rank.
    pub shape: Option<Vec<Dimension>>,
}

/// All inputs and outputs of a model version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Inputs, in the model's order.
    pub inputs: Vec<Slot>,
    /// Outputs, in the model's order.
    pub outputs: Vec<Slot>,
}

impl Signature {
    /// Whether requests for one fit the other: inputs and outputs of the same names.
    pub fn is_like(&self, other: &Self) -> bool {
        let names = |slots: &[Slot]| slots.iter().map(|slot| slot.name.clone()).collect::<BTreeSet<_>>();
        names(&self.inputs) == names(&other.inputs) && names(&self.outputs).is_subset(&names(&other.outputs))
    }
}

impl fmt::Display for Signature {
    /// What clients see of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |slots: &[Slot]| {
            let told = slots.iter().map(Slot::spec).map(|TensorSpec { name, datatype, shape }| {
                let datatype = datatype.map_or_else(|| "?".to_owned(), |datatype| datatype.to_string());
                format!("{name} {datatype} {shape:?}")
            });
            told.collect::<Vec<_>>().join(", ")
        };
        write!(f, "{} -> {}", told(&self.inputs), told(&self.outputs))
    }
}

impl Slot {
    /// For the fleet's directory.
    pub fn spec(&self) -> TensorSpec {
        let shape = self.shape.iter().flatten().map(|dimension| match dimension {
            Dimension::Fixed(size) => *size,
            Dimension::Symbolic(_) => -1,
        });
        TensorSpec { name: self.name.clone(), datatype: self.datatype.clone().ok(), shape: shape.collect() }
    }

    fn first_symbol(&self) -> Option<&str> {
        self.shape.as_ref()?.first()?.symbol()
    }

    /// The inner axes that have no fixed size, and their dimensions.
    pub fn open(&self) -> impl Iterator<Item = (usize, &Dimension)> {
        let inner = self.shape.iter().flatten().enumerate().skip(1);
        inner.filter(|(_, dimension)| matches!(dimension, Dimension::Symbolic(_)))
    }

    /// Whether a tensor of this shape may be given for the slot.
    pub fn admits(&self, shape: &[i64]) -> bool {
        let Some(wanted) = &self.shape else { return true };
        wanted.len() == shape.len()
            && wanted.iter().zip(shape).all(|(wanted, given)| match wanted {
                Dimension::Fixed(size) => size == given,
                Dimension::Symbolic(_) => true,
            })
    }
}

impl Signature {
    /// Whether all inputs and outputs share one *named* symbolic first dimension, so that axis 0 is the batch.
    ///
    /// Unnamed dynamic dimensions promise nothing about each other.
    pub fn shares_first_dimension(&self) -> bool {
        let Some(symbol) = self.inputs.first().and_then(Slot::first_symbol) else { return false };
        let mut slots = self.inputs.iter().chain(&self.outputs);
        !self.outputs.is_empty() && slots.all(|slot| slot.first_symbol() == Some(symbol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(dimensions: &[&str]) -> Slot {
        let shape = dimensions.iter().map(|text| match text.parse() {
            Ok(size) => Dimension::Fixed(size),
            Err(_) => Dimension::Symbolic((*text).to_owned()),
        });
        Slot { name: "x".to_owned(), datatype: Ok(Datatype::Fp32), shape: Some(shape.collect()) }
    }

    #[test]
    fn only_a_shared_named_first_dimension_is_a_batch() {
        let batched = |inputs: &[&[&str]], outputs: &[&[&str]]| {
            let slots = |shapes: &[&[&str]]| shapes.iter().map(|shape| slot(shape)).collect();
            Signature { inputs: slots(inputs), outputs: slots(outputs) }.shares_first_dimension()
        };
        assert!(batched(&[&["batch", "4"], &["batch"]], &[&["batch", "10"]]));
        assert!(!batched(&[&["batch", "4"]], &[&["n", "10"]]));
        assert!(!batched(&[&["1", "4"]], &[&["batch", "10"]]));
        assert!(!batched(&[&["batch", "4"]], &[&["10"]]));
        assert!(!batched(&[&["", "4"]], &[&["", "10"]]));
        assert!(!batched(&[&[]], &[&[]]));
        assert!(!batched(&[], &[&["batch"]]));
    }

    #[test]
    fn shapes_are_admitted_by_rank_and_fixed_sizes() {
        let slot = slot(&["batch", "4"]);
        assert!(slot.admits(&[7, 4]));
        assert!(!slot.admits(&[7, 5]) && !slot.admits(&[4]) && !slot.admits(&[]));
    }
}
