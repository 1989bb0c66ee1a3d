//! Row packing: requests that differ in their rows only travel as one, since a message costs far more than a small row does.
//! Plain code.

use std::collections::HashMap;
use std::time::Duration;

use millrace_common::protocol::codec::MAX_ID_BYTES;
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::response::InferResponse;
use millrace_common::protocol::tensor::{BytesElements, Datatype, Tensor};
use serde::Deserialize;

use crate::request::Request;

/// Tensor bytes of a pack, at most. What is larger costs more by its bytes than by being a message.
const MOST_BYTES: usize = 1 << 20;
/// The correlation id of a pack whose members can be told from its body's id.
pub(crate) const MARK: &str = "millrace.pack";

/// Requests of equal keys may share a pack: model, version, tier, encoding, deadline class, inputs without their rows,
/// outputs, parameters.
pub(crate) type Key = Box<[u8]>;

/// What packing must know of a request.
#[derive(Debug)]
pub(crate) struct Traits {
    pub(crate) key: Key,
    /// Rows along axis 0, 1 or more.
    pub(crate) rows: u32,
    /// What it adds to a pack.
    pub(crate) size: Size,
}

/// What a pack holds besides rows, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    /// Tensors.
    data: usize,
    /// Its manifest, at most.
    entry: usize,
}

impl Size {
    fn and(self, other: Self) -> Self {
        Self { data: self.data + other.data, entry: self.entry + other.entry }
    }

    fn fits(self) -> bool {
        self.data <= MOST_BYTES && self.entry <= MAX_ID_BYTES
    }
}

/// The traits of a request, or `None` for one that must travel alone: an urgent one, since it should not wait for others, and
/// one whose inputs do not agree on their rows or whose tensors contradict themselves.
///
/// `has_manifest`: whether the pack is to carry one.
pub(crate) fn traits(request: &Request, budget: Duration, has_manifest: bool) -> Option<Traits> {
    let inputs = &request.body.inputs;
    let rows = *inputs.first()?.shape.first()?;
    let agree = inputs.iter().all(|input| input.shape.first() == Some(&rows) && input.check().is_ok());
    if request.is_urgent || rows < 1 || !agree {
        return None;
    }
    let rows = u32::try_from(rows).ok()?;
    let entry = if has_manifest { written(&[entry(request, rows)]).len() } else { 0 };
    let size = Size { data: inputs.iter().map(|input| input.data.len()).sum(), entry };
    size.fits().then(|| Traits { key: key(request, budget), rows, size })
}

fn key(request: &Request, budget: Duration) -> Key {
    let mut key = Vec::with_capacity(128);
    let mut part = |bytes: &[u8]| {
        key.extend_from_slice(&bytes.len().to_le_bytes());
        key.extend_from_slice(bytes);
    };
    part(&[u8::from(request.refuses_degraded)]);
    part(request.model.as_bytes());
    part(request.tier.as_deref().unwrap_or_default().as_bytes());
    part(&request.version.map_or([0; 8], u64::to_le_bytes));
    part(&[u8::from(request.version.is_some()), request.encoding as u8]);
    part(&deadline_class(budget).to_le_bytes());
    // Counts first, so that no two requests are written alike.
    part(&request.body.inputs.len().to_le_bytes());
    part(&request.body.outputs.len().to_le_bytes());
    for input in &request.body.inputs {
        part(input.name.as_bytes());
        part(&[input.datatype as u8]);
        part(&input.shape.len().to_le_bytes());
        for size in &input.shape[1..] {
            part(&size.to_le_bytes());
        }
    }
    for output in &request.body.outputs {
        part(output.name.as_bytes());
        part(&[output.binary.map_or(2, u8::from)]);
    }
    if !request.body.parameters.is_empty() {
        // What cannot be written, NaN, is refused when the request is encoded.
        part(&serde_json::to_vec(&request.body.parameters).unwrap_or_default());
    }
    key.into()
}

/// Budgets of one class differ by a sixteenth at most.
fn deadline_class(budget: Duration) -> u64 {
    let ms = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX).max(1);
    let shift = (u64::BITS - ms.leading_zeros()).saturating_sub(5);
    (ms >> shift) << shift
}

/// So many requests in a row that waited for company in vain tell that there is none.
const IN_VAIN: u32 = 3;
/// Requests that go by themselves after them.
const EXCUSED: u32 = 16;

/// Requests that wait for company, by key, and how many of each key are away: sent and not answered.
#[derive(Debug)]
pub(crate) struct Lots<M> {
    by_key: HashMap<Key, Lot<M>>,
    opened: u64,
}

#[derive(Debug)]
struct Lot<M> {
    members: Vec<M>,
    rows: u32,
    size: Size,
    number: u64,
    away: u32,
    /// Requests in a row that waited in vain.
    lonely: u32,
    /// Requests that need not wait for company.
    excused: u32,
}

/// What comes of adding a request.
#[derive(Debug)]
pub(crate) struct Added<M> {
    /// A pack that is complete.
    pub(crate) complete: Option<Vec<M>>,
    /// The number of the lot that the request is the first of.
    pub(crate) opened: Option<u64>,
}

impl<M> Default for Lots<M> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), opened: 0 }
    }
}

impl<M> Default for Lot<M> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            rows: 0,
            size: Size::default(),
            number: 0,
            away: 0,
            lonely: 0,
            excused: 0,
        }
    }
}

impl<M> Lots<M> {
    /// Whether a request of this key should wait for company: not where none is away, nor after some that waited in vain.
    pub(crate) fn wants_company(&mut self, key: &Key) -> bool {
        let Some(lot) = self.by_key.get_mut(key).filter(|lot| lot.away > 0) else { return false };
        let is_excused = lot.excused > 0 && lot.members.is_empty();
        lot.excused -= u32::from(is_excused);
        !is_excused
    }

    /// Notes that a request or a pack of this key is sent.
    pub(crate) fn send(&mut self, key: &Key) {
        match self.by_key.get_mut(key) {
            Some(lot) => lot.away += 1,
            None => drop(self.by_key.insert(key.clone(), Lot { away: 1, ..Lot::default() })),
        }
    }

    /// Notes that one is answered.
    pub(crate) fn answered(&mut self, key: &Key) {
        let Some(lot) = self.by_key.get_mut(key) else { return };
        lot.away = lot.away.saturating_sub(1);
        if lot.away == 0 && lot.members.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Adds a request to the lot of its key, whose pack is complete with `most` rows.
    pub(crate) fn add(&mut self, traits: &Traits, most: u32, member: M) -> Added<M> {
        let lot = match self.by_key.get_mut(&traits.key) {
            Some(lot) => lot,
            None => self.by_key.entry(traits.key.clone()).or_default(),
        };
        let fits = lot.rows.saturating_add(traits.rows) <= most && lot.size.and(traits.size).fits();
        let mut complete = None;
        if !fits && !lot.members.is_empty() {
            complete = Some(lot.take());
        }
        let is_first = lot.members.is_empty();
        if is_first {
            self.opened += 1;
            lot.number = self.opened;
        }
        lot.members.push(member);
        lot.rows = lot.rows.saturating_add(traits.rows);
        lot.size = lot.size.and(traits.size);
        if complete.is_none() && lot.rows >= most {
            complete = Some(lot.take());
        }
        Added { complete, opened: (is_first && !lot.members.is_empty()).then_some(lot.number) }
    }

    /// Takes the lot of this number, if it still waits.
    pub(crate) fn close(&mut self, key: &Key, number: u64) -> Option<Vec<M>> {
        let lot = self.by_key.get_mut(key)?;
        if lot.number != number || lot.members.is_empty() {
            return None;
        }
        let members = lot.take();
        if let [_] = members[..] {
            lot.lonely += 1;
            lot.excused = if lot.lonely >= IN_VAIN { EXCUSED } else { 0 };
        }
        Some(members)
    }
}

impl<M> Lot<M> {
    fn take(&mut self) -> Vec<M> {
        (self.rows, self.size) = (0, Size::default());
        let members = std::mem::take(&mut self.members);
        if members.len() > 1 {
            self.lonely = 0;
        }
        members
    }
}

/// One request of the rows of all, which have equal keys.
pub(crate) fn join(requests: &[&Request]) -> InferRequest {
    let first = &requests[0].body;
    let inputs = first.inputs.iter().enumerate().map(|(index, input)| {
        let parts = || requests.iter().map(|request| &request.body.inputs[index]);
        let mut data = Vec::with_capacity(parts().map(|part| part.data.len()).sum());
        parts().for_each(|part| data.extend_from_slice(&part.data));
        let mut shape = input.shape.clone();
        shape[0] = parts().map(|part| part.shape[0]).sum();
        Tensor { shape, data: data.into(), name: input.name.clone(), datatype: input.datatype }
    });
    InferRequest {
        id: None,
        parameters: first.parameters.clone(),
        inputs: inputs.collect(),
        outputs: first.outputs.clone(),
    }
}

/// The members' parts of a response, which share its memory; `None` where it has not one row for each of theirs.
pub(crate) fn split(response: &InferResponse, rows: &[u32]) -> Option<Vec<InferResponse>> {
    let total: usize = rows.iter().map(|&rows| rows as usize).sum();
    let ends = response.outputs.iter().map(|output| row_ends(output, total)).collect::<Option<Vec<_>>>()?;
    let mut from = 0;
    let parts = rows.iter().map(|&rows| {
        let to = from + rows as usize;
        let outputs = response.outputs.iter().zip(&ends).map(|(output, ends)| {
            let mut shape = output.shape.clone();
            shape[0] = i64::from(rows);
            let data = output.data.slice(ends.at(from)..ends.at(to));
            Tensor { shape, data, name: output.name.clone(), datatype: output.datatype }
        });
        let outputs = outputs.collect();
        from = to;
        let (model_name, model_version) = (response.model_name.clone(), response.model_version.clone());
        InferResponse { model_name, model_version, id: None, outputs }
    });
    Some(parts.collect())
}

/// Where the rows of an output end.
enum RowEnds {
    /// All rows have so many bytes.
    Every(usize),
    /// They differ; begins with 0.
    Each(Vec<usize>),
}

impl RowEnds {
    fn at(&self, row: usize) -> usize {
        match self {
            Self::Every(bytes) => row * bytes,
            Self::Each(ends) => ends[row],
        }
    }
}

fn row_ends(output: &Tensor, rows: usize) -> Option<RowEnds> {
    if output.shape.first().and_then(|&first| usize::try_from(first).ok()) != Some(rows) || rows == 0 {
        return None;
    }
    if output.datatype != Datatype::Bytes {
        return output.data.len().is_multiple_of(rows).then(|| RowEnds::Every(output.data.len() / rows));
    }
    let a_row =
        output.shape[1..].iter().try_fold(1usize, |count, &size| count.checked_mul(size.try_into().ok()?))?;
    let mut elements = BytesElements::new(&output.data);
    let mut ends = Vec::with_capacity(rows + 1);
    ends.push(0);
    for _ in 0..rows {
        for _ in 0..a_row {
            elements.next()?.ok()?;
        }
        ends.push(output.data.len() - elements.remaining());
    }
    (elements.remaining() == 0).then_some(RowEnds::Each(ends))
}

/// A member of a pack, as its manifest tells.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Row")]
pub(crate) struct Entry {
    pub(crate) rows: u32,
    pub(crate) correlation_id: Option<String>,
    pub(crate) body_id: Option<String>,
}

/// An entry without the fields' names, since it travels twice.
type Row = (u32, Option<String>, Option<String>);

impl From<Row> for Entry {
    fn from((rows, correlation_id, body_id): Row) -> Self {
        Self { rows, correlation_id, body_id }
    }
}

fn entry(request: &Request, rows: u32) -> Row {
    (rows, request.correlation_id.clone(), request.body.id.clone())
}

/// What a pack's body has as its id, which comes back with the reply, so that a later process can tell whom it answers.
pub(crate) fn manifest(requests: &[&Request]) -> String {
    let rows = |request: &Request| u32::try_from(request.body.inputs[0].shape[0]).unwrap_or(0);
    written(&requests.iter().map(|request| entry(request, rows(request))).collect::<Vec<_>>())
}

fn written(entries: &[Row]) -> String {
    serde_json::to_string(entries).expect("numbers and text can be written")
}

/// The members of the pack that a response answers, by its body's id.
pub(crate) fn members(response: &InferResponse) -> Option<Vec<Entry>> {
    serde_json::from_str(response.id.as_deref()?).ok().filter(|members: &Vec<Entry>| !members.is_empty())
}

#[cfg(test)]
mod tests;
