//! Padding: rows of unlike inner sizes made alike, and what undoes it in the outputs. Plain code.

use std::collections::BTreeMap;

use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::within;
use millrace_common::protocol::elements::{self, ElementError};
use millrace_common::protocol::tensor::Datatype;
use serde::Deserialize;

use super::signature::{Signature, Slot};
use crate::schedule::batch::{BatchError, BatchInput, BatchOutput};

/// Sizes up to this one share a bucket where the model's configuration names none.
const SMALLEST_BUCKET: u64 = 8;

/// `[dynamic_batching.padding]`: requests of unlike inner sizes share batches, the shorter ones filled up at their ends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaddingConfig {
    /// What each input with dynamic inner dimensions is filled up with. The model must take no notice of it.
    pub values: BTreeMap<String, toml::Value>,
    /// Inner sizes, ascending: those with the same next larger one share batches. What is larger than all shares with its equals
    /// only. Empty: the powers of two from 8.
    #[serde(default)]
    pub buckets: Vec<i64>,
}

impl Validate for PaddingConfig {
    fn validate(&self) -> Result<(), Invalid> {
        const BUCKETS: &str = "dynamic_batching.padding.buckets";
        if self.values.is_empty() {
            let remedy = "name each input with dynamic inner dimensions and what fills it up";
            return Err(Invalid::new("dynamic_batching.padding.values", "empty", remedy));
        }
        for &size in &self.buckets {
            within(BUCKETS, u64::try_from(size).unwrap_or(0), 1, 1 << 31)?;
        }
        if !self.buckets.is_sorted_by(|a, b| a < b) {
            return Err(Invalid::new(BUCKETS, format!("{:?}", self.buckets), "write them ascending"));
        }
        Ok(())
    }
}

/// Why a model's requests cannot be padded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PaddingError {
    /// Requests that share no batch.
    #[error(
        "dynamic_batching.padding: its requests share no batch anyway, for the inputs and outputs have no first dimension of one \
         name, or config.toml says batch_safe = false or max_batch_size = 1"
    )]
    NotShared,
    /// An input with dynamic inner dimensions and no value.
    #[error(
        "dynamic_batching.padding.values: input `{0}` has dynamic inner dimensions; say what fills it up"
    )]
    Missing(String),
    /// A value for what is no such input.
    #[error("dynamic_batching.padding.values: `{0}` is no input with dynamic inner dimensions")]
    Unknown(String),
    /// Small requests of which padding may make a batch of any size.
    #[error(
        "dynamic_batching.padding.buckets: input `{0}` has several dynamic inner dimensions, so a long and narrow row and a short and \
         wide one may share a bucket and become far larger together; set dynamic_batching.max_padded_elements"
    )]
    Unbounded(String),
    /// An input whose elements cannot be made up.
    #[error("dynamic_batching.padding.values: input `{name}` is {found}, which cannot be padded")]
    Input {
        /// Input name.
        name: String,
        /// Its type.
        found: String,
    },
    /// A value that the input cannot hold.
    #[error("dynamic_batching.padding.values: {value} does not fit input `{name}` of {datatype}: {source}")]
    Value {
        /// Input name.
        name: String,
        /// The value.
        value: String,
        /// The input's type.
        datatype: Datatype,
        /// What is wrong with it.
        source: ElementError,
    },
    /// An output whose padding nothing tells from a request's own part.
    #[error(
        "dynamic_batching.padding: output `{name}` cannot be cut back to a request's own size along axis {axis}: {problem}; leave \
         padding out, or export the model so that the axis is fixed or named like the input's"
    )]
    Output {
        /// Output name.
        name: String,
        /// The axis.
        axis: usize,
        /// What it lacks.
        problem: String,
    },
}

/// How a model version's inputs are padded and its outputs cut back.
#[derive(Clone, Debug)]
pub struct Padding {
    /// By input: the element that fills it up, where inner dimensions are dynamic.
    elements: Vec<Option<Vec<u8>>>,
    ties: Vec<Tie>,
    buckets: Vec<i64>,
}

/// An output's axis and the input's whose size it has, by the dimension's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tie {
    output: usize,
    axis: usize,
    input: usize,
    input_axis: usize,
}

impl Padding {
    /// Fits the configuration to a model's inputs and outputs. `is_bounded` is whether batches have a budget of elements.
    ///
    /// # Errors
    /// [`PaddingError`].
    pub fn new(
        config: &PaddingConfig,
        is_bounded: bool,
        signature: &Signature,
    ) -> Result<Self, PaddingError> {
        let is_open = |name: &String| {
            signature.inputs.iter().any(|slot| slot.name == *name && slot.open().next().is_some())
        };
        if let Some(unknown) = config.values.keys().find(|name| !is_open(name)) {
            return Err(PaddingError::Unknown(unknown.clone()));
        }
        let is_wide = |slot: &&Slot| slot.open().count() > 1;
        if let (false, false, Some(slot)) =
            (is_bounded, config.buckets.is_empty(), signature.inputs.iter().find(is_wide))
        {
            return Err(PaddingError::Unbounded(slot.name.clone()));
        }
        let elements = signature.inputs.iter().map(|slot| element(config, slot)).collect::<Result<_, _>>()?;
        let mut ties = Vec::new();
        for (output, slot) in signature.outputs.iter().enumerate() {
            ties.extend(ties_of(output, slot, signature)?);
        }
        Ok(Self { elements, ties, buckets: config.buckets.clone() })
    }

    /// The element that fills input number `input` up.
    pub fn element(&self, input: usize) -> Option<&[u8]> {
        self.elements[input].as_deref()
    }

    /// The size up to which others may share a batch with `size`. Nothing is added to an axis without elements: the model may
    /// refuse it, and should not be asked something else.
    pub fn bucket(&self, size: i64) -> i64 {
        if size == 0 {
            return size;
        }
        if self.buckets.is_empty() {
            let power = size.unsigned_abs().max(SMALLEST_BUCKET).next_power_of_two();
            return i64::try_from(power).unwrap_or(size);
        }
        let next = self.buckets.partition_point(|&bucket| bucket < size);
        self.buckets.get(next).copied().unwrap_or(size)
    }

    /// Checks that outputs have the sizes of the inputs they are cut by.
    ///
    /// # Errors
    /// [`BatchError::Padded`].
    pub fn check(
        &self,
        inputs: &[BatchInput<'_>],
        outputs: &[Option<BatchOutput<'_>>],
    ) -> Result<(), BatchError> {
        for &Tie { output: index, axis, input, input_axis } in &self.ties {
            let wanted = inputs[input].shape[input_axis];
            if let Some(output) = &outputs[index]
                && output.shape.get(axis) != Some(&wanted)
            {
                return Err(BatchError::Padded { index, shape: output.shape.to_vec(), axis, wanted });
            }
        }
        Ok(())
    }

    /// Makes the shape of output number `output` that of the request's own part. `size` gives a size by input and axis.
    pub fn cut(&self, output: usize, shape: &mut [i64], size: impl Fn(usize, usize) -> i64) {
        for tie in self.ties.iter().filter(|tie| tie.output == output) {
            shape[tie.axis] = size(tie.input, tie.input_axis);
        }
    }
}

/// What an input is filled up with.
fn element(config: &PaddingConfig, slot: &Slot) -> Result<Option<Vec<u8>>, PaddingError> {
    if slot.open().next().is_none() {
        return Ok(None);
    }
    let name = slot.name.clone();
    let value = config.values.get(&name).ok_or_else(|| PaddingError::Missing(name.clone()))?;
    let datatype = match &slot.datatype {
        Ok(Datatype::Bytes) => return Err(PaddingError::Input { name, found: Datatype::Bytes.to_string() }),
        Err(found) => return Err(PaddingError::Input { name, found: found.clone() }),
        Ok(datatype) => *datatype,
    };
    // As in a request's body.
    let text = match value {
        toml::Value::Float(number) if number.is_nan() => "\"NaN\"".to_owned(),
        toml::Value::Float(number) if *number == f64::INFINITY => "\"Infinity\"".to_owned(),
        toml::Value::Float(number) if *number == f64::NEG_INFINITY => "\"-Infinity\"".to_owned(),
        value => value.to_string(),
    };
    let element = elements::parse(&text, datatype, &[]);
    element.map(Some).map_err(|source| PaddingError::Value {
        name,
        value: value.to_string(),
        datatype,
        source,
    })
}

fn ties_of(output: usize, slot: &Slot, signature: &Signature) -> Result<Vec<Tie>, PaddingError> {
    let axes_of = |symbol: &str| {
        let inputs = signature.inputs.iter().enumerate();
        let axes =
            inputs.flat_map(|(input, slot)| slot.open().map(move |(axis, found)| (input, axis, found)));
        let mut axes = axes.filter(|(_, _, found)| found.symbol() == Some(symbol));
        axes.next().map(|(input, axis, _)| (input, axis))
    };
    let tie = |(axis, dimension): (usize, &super::signature::Dimension)| {
        let fail = |problem: String| PaddingError::Output { name: slot.name.clone(), axis, problem };
        let symbol =
            dimension.symbol().ok_or_else(|| fail("its size is dynamic and has no name".to_owned()))?;
        let (input, input_axis) = axes_of(symbol)
            .ok_or_else(|| fail(format!("no input has an inner dimension of its name, `{symbol}`")))?;
        match slot.datatype {
            Ok(Datatype::Bytes) => Err(fail("BYTES elements have no fixed size".to_owned())),
            _ => Ok(Tie { output, axis, input, input_axis }),
        }
    };
    slot.open().map(tie).collect()
}

#[cfg(test)]
mod tests {
    use super::super::signature::Dimension;
    use super::*;

    fn slot(name: &str, datatype: Datatype, inner: &[&str]) -> Slot {
        let inner = inner.iter().map(|text| match text.parse() {
            Ok(size) => Dimension::Fixed(size),
            Err(_) => Dimension::Symbolic((*text).to_owned()),
        });
        let batch = Dimension::Symbolic("batch".to_owned());
        Slot {
            name: name.to_owned(),
            datatype: Ok(datatype),
            shape: Some(std::iter::once(batch).chain(inner).collect()),
        }
    }

    fn config(text: &str) -> PaddingConfig {
        toml::from_str(text).unwrap()
    }

    fn text_model(ids: Datatype, output: Slot) -> Signature {
        let inputs = vec![slot("ids", ids, &["length"]), slot("mask", Datatype::Fp16, &["4", "length"])];
        Signature { inputs, outputs: vec![slot("pooled", Datatype::Fp32, &["384"]), output] }
    }

    #[test]
    fn outputs_are_cut_by_the_names_of_their_dimensions() {
        let signature = text_model(Datatype::Int64, slot("states", Datatype::Fp32, &["length", "384"]));
        let padding = Padding::new(&config("values = { ids = -1, mask = -inf }"), false, &signature).unwrap();
        assert_eq!(padding.element(0), Some((-1i64).to_le_bytes().as_slice()));
        assert_eq!(padding.element(1), Some([0x00, 0xfc].as_slice()));
        let cut = |output| {
            let mut shape = [1, 16, 384];
            padding.cut(output, &mut shape, |input, axis| [[1, 5, 0], [1, 4, 5]][input][axis]);
            shape
        };
        assert_eq!([cut(0), cut(1)], [[1, 16, 384], [1, 5, 384]]);
    }

    #[test]
    fn what_cannot_be_padded_is_named() {
        let good = || slot("states", Datatype::Fp32, &["length"]);
        let both = "values = { ids = 0, mask = 0 }";
        let cases = [
            ("values = { ids = 0 }", Datatype::Int64, good(), "input `mask` has dynamic"),
            ("values = { ids = 0, mask = 0, x = 0 }", Datatype::Int64, good(), "`x` is no input"),
            (both, Datatype::Bytes, good(), "input `ids` is BYTES"),
            (
                "values = { ids = 256, mask = 0 }",
                Datatype::Uint8,
                good(),
                "256 does not fit input `ids` of UINT8",
            ),
            ("values = { ids = 0.5, mask = 0 }", Datatype::Int32, good(), "0.5 does not fit"),
            (both, Datatype::Bool, good(), "0 does not fit input `ids` of BOOL"),
            ("values = { ids = 'a', mask = 0 }", Datatype::Int32, good(), "\"a\" does not fit"),
            (
                both,
                Datatype::Int64,
                slot("z", Datatype::Fp32, &["3", "tokens"]),
                "output `z` cannot be cut back",
            ),
            (
                both,
                Datatype::Int64,
                slot("z", Datatype::Fp32, &["3", "tokens"]),
                "axis 2: no input has an inner dimension of its name, `tokens`",
            ),
            (both, Datatype::Int64, slot("z", Datatype::Fp32, &[""]), "dynamic and has no name"),
            // The batch's name ties nothing to an inner axis.
            (both, Datatype::Int64, slot("z", Datatype::Fp32, &["batch"]), "of its name, `batch`"),
            (
                both,
                Datatype::Int64,
                slot("z", Datatype::Bytes, &["length"]),
                "BYTES elements have no fixed size",
            ),
        ];
        for (values, ids, output, part) in cases {
            let error =
                Padding::new(&config(values), false, &text_model(ids, output)).unwrap_err().to_string();
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    }

    #[test]
    fn sizes_are_rounded_up() {
        let padding = |buckets| Padding { elements: vec![], ties: vec![], buckets };
        let powers = padding(vec![]);
        assert_eq!(
            [0, 1, 8, 9, 16, 17, i64::MAX].map(|size| powers.bucket(size)),
            [0, 8, 8, 16, 16, 32, i64::MAX]
        );
        let own = padding(vec![10, 100]);
        assert_eq!([0, 1, 10, 11, 100, 101].map(|size| own.bucket(size)), [0, 10, 10, 100, 100, 101]);
    }
}
