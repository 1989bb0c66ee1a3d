//! Requests to jobs: checked against the model's signature, so that no request can fail its batch mates.
//!
//! Plain code: no clock, no channel.

use std::collections::HashMap;

use millrace_common::protocol::codec::Encoding;
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::status::Code;
use millrace_common::protocol::tensor::{BytesElements, Datatype, Tensor};

use crate::job::BatchKey;
use crate::model::padding::Padding;
use crate::model::signature::{Dimension, Signature, Slot};

/// What admission needs to know of a model version.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Inputs and outputs.
    pub signature: Signature,
    /// Most rows of a request; 1 where the model is not batched.
    pub max_batch_size: u32,
    /// Whether axis 0 is the batch.
    pub is_batched: bool,
    /// Whether requests may share a batch.
    pub is_shared: bool,
    /// How rows of unlike inner sizes are made alike, where they are.
    pub padding: Option<Padding>,
    /// Rows × inner elements of a batch of several requests, at most; of the largest input, padded.
    pub max_padded_elements: Option<u64>,
}

/// A request's tensors, in the model's order.
#[derive(Debug, PartialEq)]
pub struct Admitted {
    /// Inputs in the signature's order.
    pub inputs: Vec<Tensor>,
    /// Outputs wanted, by number in the signature, and how to write each.
    pub outputs: Vec<(usize, Encoding)>,
    /// Rows along axis 0; 1 where the model is not batched.
    pub rows: u32,
    /// Who may share a batch with it.
    pub key: BatchKey,
    /// Rows of a batch of its key, at most.
    pub most_rows: u32,
}

/// A request that does not fit the model. The text tells the caller what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// An input the model needs is absent.
    #[error("input `{0}` is missing")]
    Missing(String),
    /// An input given twice, or one the model does not have.
    #[error("input `{name}` is unknown or given twice; the model takes {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// The names it has.
        known: String,
    },
    /// Another element type than the model's.
    #[error("input `{name}` is {given}, the model takes {wanted}")]
    Datatype {
        /// Input name.
        name: String,
        /// Given type.
        given: String,
        /// The model's type.
        wanted: String,
    },
    /// Another rank or fixed size than the model's.
    #[error("input `{name}` has shape {given:?}, the model takes {wanted}")]
    Shape {
        /// Input name.
        name: String,
        /// Given shape.
        given: Vec<i64>,
        /// The model's shape.
        wanted: String,
    },
    /// Inputs that disagree on the number of rows, or have none.
    #[error(
        "inputs of a batched model need the same first dimension, 1 or more; `{name}` has {given}, another {wanted}"
    )]
    Rows {
        /// Input name.
        name: String,
        /// Its rows.
        given: i64,
        /// The other's rows.
        wanted: i64,
    },
    /// Sizes of one name that disagree, where the padding goes by names.
    #[error("dimension `{symbol}` has size {given} in input `{name}`, and {other} elsewhere in the request")]
    Symbol {
        /// The dimension's name.
        symbol: String,
        /// Input name.
        name: String,
        /// Its size there.
        given: i64,
        /// The size before.
        other: i64,
    },
    /// More rows than a batch may have.
    #[error("{given} rows in one request, max_batch_size is {limit}; split the request")]
    TooManyRows {
        /// Rows given.
        given: i64,
        /// The limit.
        limit: u32,
    },
    /// An output the model does not have, or one asked for twice.
    #[error("output `{name}` is unknown or asked for twice; the model gives {known}")]
    Output {
        /// The name asked for.
        name: String,
        /// The names it has.
        known: String,
    },
    /// BYTES that ONNX Runtime cannot take.
    #[error("input `{0}`: an element contains a NUL byte, which ONNX Runtime cannot take")]
    Nul(String),
    /// A type that the protocol does not have.
    #[error("`{name}` is {found}, which the protocol cannot carry")]
    Unsupported {
        /// Input or output name.
        name: String,
        /// Its ONNX type.
        found: String,
    },
}

impl Misfit {
    /// The code the caller gets.
    pub fn code(&self) -> Code {
        Code::InvalidInput
    }
}

/// Checks a request and puts its tensors into the model's order. `sequence` is a number no other request has.
///
/// # Errors
/// [`Misfit`].
pub fn admit(rules: &Rules, mut request: InferRequest, sequence: u64) -> Result<Admitted, Misfit> {
    let mut inputs = Vec::with_capacity(rules.signature.inputs.len());
    for slot in &rules.signature.inputs {
        let position = request.inputs.iter().position(|tensor| tensor.name == slot.name);
        let tensor = request.inputs.swap_remove(position.ok_or_else(|| Misfit::Missing(slot.name.clone()))?);
        check(slot, &tensor)?;
        inputs.push(tensor);
    }
    if let Some(extra) = request.inputs.first() {
        return Err(Misfit::Unknown { name: extra.name.clone(), known: names(&rules.signature.inputs) });
    }
    let rows = if rules.is_batched { rows(&inputs, rules.max_batch_size)? } else { 1 };
    let outputs = outputs(rules, &request)?;
    if rules.padding.is_some() {
        agree(&rules.signature, &inputs)?;
    }
    let (key, most_rows) =
        if rules.is_shared { key(rules, &inputs) } else { (BatchKey::Alone(sequence), u32::MAX) };
    Ok(Admitted { inputs, outputs, rows, key, most_rows })
}

fn check(slot: &Slot, tensor: &Tensor) -> Result<(), Misfit> {
    let wanted = slot
        .datatype
        .as_ref()
        .map_err(|found| Misfit::Unsupported { name: slot.name.clone(), found: found.clone() })?;
    if *wanted != tensor.datatype {
        return Err(Misfit::Datatype {
            name: slot.name.clone(),
            given: tensor.datatype.to_string(),
            wanted: wanted.to_string(),
        });
    }
    if !slot.admits(&tensor.shape) {
        return Err(Misfit::Shape {
            name: slot.name.clone(),
            given: tensor.shape.clone(),
            wanted: shape_text(slot),
        });
    }
    // Found by the runtime it would fail the whole batch.
    if tensor.datatype == Datatype::Bytes
        && BytesElements::new(&tensor.data).flatten().any(|e| e.contains(&0))
    {
        return Err(Misfit::Nul(slot.name.clone()));
    }
    Ok(())
}

fn rows(inputs: &[Tensor], max_batch_size: u32) -> Result<u32, Misfit> {
    let first = |tensor: &Tensor| tensor.shape.first().copied().unwrap_or(0);
    let wanted = inputs.first().map_or(0, first);
    if let Some(other) = inputs.iter().find(|tensor| first(tensor) != wanted || wanted < 1) {
        return Err(Misfit::Rows { name: other.name.clone(), given: first(other), wanted });
    }
    match u32::try_from(wanted) {
        Ok(rows) if rows <= max_batch_size => Ok(rows),
        _ => Err(Misfit::TooManyRows { given: wanted, limit: max_batch_size }),
    }
}

fn outputs(rules: &Rules, request: &InferRequest) -> Result<Vec<(usize, Encoding)>, Misfit> {
    let encoding = |binary: bool| if binary { Encoding::Binary } else { Encoding::Json };
    let default = request.binary_data_output();
    let slots = &rules.signature.outputs;
    let mut wanted: Vec<(usize, Encoding)> = Vec::with_capacity(slots.len());
    if request.outputs.is_empty() {
        wanted.extend((0..slots.len()).map(|index| (index, encoding(default))));
    }
    for output in &request.outputs {
        let index = slots.iter().position(|slot| slot.name == output.name);
        match index {
            Some(index) if !wanted.iter().any(|(other, _)| *other == index) => {
                wanted.push((index, encoding(output.binary.unwrap_or(default))));
            }
            _ => return Err(Misfit::Output { name: output.name.clone(), known: names(slots) }),
        }
    }
    match wanted
        .iter()
        .find_map(|(index, _)| slots[*index].datatype.as_ref().err().map(|found| (*index, found)))
    {
        Some((index, found)) => {
            Err(Misfit::Unsupported { name: slots[index].name.clone(), found: found.clone() })
        }
        None => Ok(wanted),
    }
}

/// The sizes of inner dimensions that the signature leaves open, and how many rows of them a batch may have.
fn key(rules: &Rules, inputs: &[Tensor]) -> (BatchKey, u32) {
    let mut open = Vec::new();
    let mut largest = 1u64;
    for (slot, tensor) in rules.signature.inputs.iter().zip(inputs) {
        let mut elements = 1u64;
        for (dimension, &own) in slot.shape.iter().flatten().zip(&tensor.shape).skip(1) {
            let mut size = own;
            if let Dimension::Symbolic(_) = dimension {
                size = rules.padding.as_ref().map_or(own, |padding| padding.bucket(own));
                open.push(size);
            }
            elements = elements.saturating_mul(size.unsigned_abs());
        }
        largest = largest.max(elements);
    }
    let most_rows = rules.max_padded_elements.map_or(u32::MAX, |most| {
        // One row that is larger by itself still runs.
        u32::try_from(most / largest).unwrap_or(u32::MAX).max(1)
    });
    (BatchKey::Shared(open.into()), most_rows)
}

/// Checks that inner dimensions of one name have one size: outputs are cut by names.
fn agree(signature: &Signature, inputs: &[Tensor]) -> Result<(), Misfit> {
    let mut sizes = HashMap::new();
    for (slot, tensor) in signature.inputs.iter().zip(inputs) {
        for (dimension, &given) in slot.shape.iter().flatten().zip(&tensor.shape).skip(1) {
            let Some(symbol) = dimension.symbol() else { continue };
            let other = *sizes.entry(symbol).or_insert(given);
            if other != given {
                let (symbol, name) = (symbol.to_owned(), slot.name.clone());
                return Err(Misfit::Symbol { symbol, name, given, other });
            }
        }
    }
    Ok(())
}

fn names(slots: &[Slot]) -> String {
    slots.iter().map(|slot| format!("`{}`", slot.name)).collect::<Vec<_>>().join(", ")
}

fn shape_text(slot: &Slot) -> String {
    let dimensions = slot.shape.iter().flatten().map(|dimension| match dimension {
        Dimension::Fixed(size) => size.to_string(),
        Dimension::Symbolic(name) if name.is_empty() => "?".to_owned(),
        Dimension::Symbolic(name) => name.clone(),
    });
    format!("[{}]", dimensions.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_common::protocol::request::RequestedOutput;
    use millrace_common::protocol::tensor::Datatype;

    fn rules() -> Rules {
        let slot = |name: &str, inner: Dimension| Slot {
            name: name.to_owned(),
            datatype: Ok(Datatype::Uint8),
            shape: Some(vec![Dimension::Symbolic("batch".to_owned()), inner]),
        };
        let signature = Signature {
            inputs: vec![slot("a", Dimension::Fixed(2)), slot("b", Dimension::Symbolic("length".to_owned()))],
            outputs: vec![slot("y", Dimension::Fixed(2)), slot("z", Dimension::Fixed(2))],
        };
        Rules {
            signature,
            max_batch_size: 4,
            is_batched: true,
            is_shared: true,
            padding: None,
            max_padded_elements: None,
        }
    }

    fn tensor(name: &str, shape: &[i64]) -> Tensor {
        let size = usize::try_from(shape.iter().product::<i64>()).unwrap();
        Tensor::new(name, Datatype::Uint8, shape.to_vec(), vec![0; size].into()).unwrap()
    }

    fn request(inputs: Vec<Tensor>) -> InferRequest {
        InferRequest { inputs, ..InferRequest::default() }
    }

    #[test]
    fn inputs_come_in_any_order_and_leave_in_the_models() {
        let admitted = admit(&rules(), request(vec![tensor("b", &[3, 5]), tensor("a", &[3, 2])]), 0).unwrap();
        assert_eq!(admitted.inputs[0].name, "a");
        assert_eq!(admitted.rows, 3);
        assert_eq!(admitted.key, BatchKey::Shared([5].into()));
        assert_eq!(admitted.outputs, [(0, Encoding::Json), (1, Encoding::Json)]);
    }

    #[test]
    fn misfits_are_named() {
        let good = || vec![tensor("a", &[1, 2]), tensor("b", &[1, 5])];
        let cases: Vec<(Vec<Tensor>, &str)> = vec![
            (vec![tensor("a", &[1, 2])], "`b` is missing"),
            ([good(), vec![tensor("c", &[1])]].concat(), "`c` is unknown"),
            ([good(), vec![tensor("a", &[1, 2])]].concat(), "`a` is unknown or given twice"),
            (vec![tensor("a", &[1, 3]), tensor("b", &[1, 5])], "takes [batch, 2]"),
            (vec![tensor("a", &[2]), tensor("b", &[1, 5])], "has shape [2]"),
            (vec![tensor("a", &[1, 2]), tensor("b", &[2, 5])], "same first dimension"),
            (vec![tensor("a", &[0, 2]), tensor("b", &[0, 5])], "1 or more"),
            (vec![tensor("a", &[5, 2]), tensor("b", &[5, 5])], "max_batch_size is 4"),
        ];
        for (inputs, part) in cases {
            let error = admit(&rules(), request(inputs), 0).unwrap_err().to_string();
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
        let float = Tensor::new("a", Datatype::Fp32, vec![1, 2], vec![0; 8].into()).unwrap();
        let error = admit(&rules(), request(vec![float, tensor("b", &[1, 5])]), 0).unwrap_err();
        assert!(matches!(error, Misfit::Datatype { .. }));
    }

    #[test]
    fn outputs_are_chosen_by_name() {
        let mut asked = request(vec![tensor("a", &[1, 2]), tensor("b", &[1, 5])]);
        asked.outputs = vec![RequestedOutput { name: "z".to_owned(), binary: Some(true) }];
        assert_eq!(admit(&rules(), asked.clone(), 0).unwrap().outputs, [(1, Encoding::Binary)]);
        asked.outputs.push(RequestedOutput::new("z"));
        assert!(matches!(admit(&rules(), asked.clone(), 0), Err(Misfit::Output { .. })));
        asked.outputs = vec![RequestedOutput::new("x")];
        assert!(matches!(admit(&rules(), asked, 0), Err(Misfit::Output { .. })));
    }

    #[test]
    fn padded_sizes_are_rounded_up_and_bound_the_rows() {
        let config = toml::from_str("values = { b = 0 }").unwrap();
        let padding = Some(Padding::new(&config, true, &rules().signature).unwrap());
        let admitted = |padding: &Option<Padding>, length| {
            let rules = Rules { padding: padding.clone(), max_padded_elements: Some(32), ..rules() };
            let inputs = vec![tensor("a", &[1, 2]), tensor("b", &[1, length])];
            let admitted = admit(&rules, request(inputs), 0).unwrap();
            (admitted.key, admitted.most_rows)
        };
        let key = |size| BatchKey::Shared([size].into());
        assert_eq!(
            [3, 9, 40].map(|length| admitted(&padding, length)),
            [(key(8), 4), (key(16), 2), (key(64), 1)]
        );
        assert_eq!(
            [3, 9, 0].map(|length| admitted(&None, length)),
            [(key(3), 10), (key(9), 3), (key(0), 16)]
        );
        let twice = Signature { inputs: vec![rules().signature.inputs[1].clone(); 2], ..rules().signature };
        let disagreeing = [tensor("b", &[1, 5]), tensor("c", &[1, 6])];
        let error = agree(&twice, &disagreeing).unwrap_err().to_string();
        assert!(error.contains("`length` has size 6") && agree(&rules().signature, &disagreeing).is_ok());
    }

    #[test]
    fn a_model_that_must_not_share_gets_requests_alone() {
        let rules = Rules { is_shared: false, ..rules() };
        let key = |sequence| {
            admit(&rules, request(vec![tensor("a", &[1, 2]), tensor("b", &[1, 5])]), sequence).unwrap().key
        };
        assert_ne!(key(1), key(2));
    }
}
