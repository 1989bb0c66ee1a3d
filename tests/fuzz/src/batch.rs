//! Rows of several requests stacked, and split again.

use millrace_common::protocol::tensor::{Datatype, Tensor, push_bytes_element};
use millrace_worker::schedule::batch::{BatchOutput, split, stack};
use millrace_worker::schedule::runs::cut;

use crate::first;
use crate::memory::metered;

/// Datatype, rank, and requests of sizes and bytes as the input has them. One that lies about its sizes is never copied.
pub fn batch(input: &[u8]) {
    let (kind, rest) = first(input);
    let (rank, mut rest) = first(rest);
    let datatype = Datatype::ALL[usize::from(kind) % Datatype::ALL.len()];
    let (is_padded, is_lying) = (rank & 64 != 0 && datatype != Datatype::Bytes, rank & 128 != 0);
    let mut requests = Vec::new();
    while !rest.is_empty() && requests.len() < 8 {
        let (request, more) = request(rest, datatype, usize::from(rank % 4) + 1, is_lying);
        (rest, requests) = (more, [requests, vec![request]].concat());
    }
    let element = vec![0; datatype.element_size().unwrap_or(0)];
    let parts = requests.iter().map(|tensor| (&tensor.shape[..], &tensor.data[..]));
    let Ok(stacked) = stack("x", datatype, parts, is_padded.then_some(&element[..])) else { return };
    let rows: Vec<u32> = requests.iter().map(|tensor| u32::try_from(tensor.shape[0]).unwrap_or(0)).collect();
    let data = metered(input.len(), || match datatype {
        // ONNX Runtime takes them one by one.
        Datatype::Bytes => Some(requests.iter().flat_map(|tensor| tensor.data.to_vec()).collect()),
        _ => stacked.byte_length().map(|bytes| {
            let mut data = vec![0xff; bytes];
            stacked.copy_to(&mut data);
            data
        }),
    });
    let Some(data) = data else { return };
    let Ok(ranges) = split(0, &BatchOutput { datatype, shape: &stacked.shape, data: &data }, &rows) else {
        return;
    };
    assert_eq!(ranges.len(), requests.len());
    if is_lying {
        return;
    }
    for (request, range) in requests.iter().zip(ranges) {
        let wide = [&request.shape[..1], &stacked.shape[1..]].concat();
        let size = datatype.element_size().unwrap_or(1);
        let own = if is_padded && requests.len() > 1 {
            cut(&data[range], size, &wide, &request.shape)
        } else {
            data[range].into()
        };
        assert_eq!(own, &request.data[..], "a request's rows come back as they went");
    }
}

/// A tensor of small sizes, its data filled up or cut to fit unless it lies.
fn request(input: &[u8], datatype: Datatype, rank: usize, is_lying: bool) -> (Tensor, &[u8]) {
    let (sizes, rest) = crate::split(input, rank);
    let mut shape: Vec<i64> = sizes.iter().map(|size| i64::from(size % 5)).collect();
    shape.resize(rank, 1);
    let elements = shape.iter().product::<i64>() as usize;
    let (data, rest) = match datatype.element_size() {
        Some(size) => {
            let (data, rest) = crate::split(rest, elements * size);
            let mut data = data.to_vec();
            data.resize(elements * size, 1);
            (data, rest)
        }
        None => {
            let (mut data, mut rest) = (Vec::new(), rest);
            for _ in 0..elements {
                let (length, more) = first(rest);
                let (element, more) = crate::split(more, usize::from(length % 8));
                push_bytes_element(&mut data, element);
                rest = more;
            }
            (data, rest)
        }
    };
    let data = if is_lying { data[..data.len() / 2].to_vec() } else { data };
    (Tensor { name: String::new(), datatype, shape, data: data.into() }, rest)
}
