//! What a batch costs between the requests' bytes and the replies': one copy into the runtime's tensors, one out of them, and nothing
//! that is allocated for an element.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use millrace_common::protocol::codec::{Encoding, ResponseHead, TensorView, encode_response};
use millrace_common::protocol::tensor::Datatype;
use millrace_harness::meter::{Counting, allocations_of, bytes_of};
use millrace_harness::onnx::Message;
use millrace_harness::{models, setup};
use millrace_worker::model::backend::Backend;
use millrace_worker::model::config::InstanceGroup;
use millrace_worker::model::onnx::{Runtime, disable_telemetry};
use millrace_worker::schedule::batch::{BatchOutput, split, stack};

#[global_allocator]
static COUNTING: Counting = Counting;

const REQUESTS: usize = 8;
/// For names, shapes and the library's own objects, whatever the size of the tensors.
const SMALL: usize = 32 << 10;

/// Runs requests of one row of so many elements as a batch and writes their replies, with the parts that an instance does it with.
/// Returns how often memory was asked for. What the runtime allocates for its tensors is not counted.
fn answer(backend: &mut dyn Backend, elements: usize) -> usize {
    let row: Vec<u8> = (0..elements).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let (shape, doubled) = ([1, elements as i64], [1, 2 * elements as i64]);
    let head = ResponseHead { model_name: "doubled", model_version: Some("1"), id: None };
    let mut bodies = Vec::with_capacity(REQUESTS);
    let mut read = |outputs: &[Option<BatchOutput<'_>>]| {
        let output = outputs[0].as_ref().unwrap();
        for range in split(0, output, &[1; REQUESTS]).unwrap() {
            let (datatype, data) = (output.datatype, &output.data[range]);
            let view = TensorView { name: "y", datatype, shape: &doubled, data, encoding: Encoding::Binary };
            bodies.push(encode_response(head, &[view]).unwrap().bytes);
        }
    };
    let run = || {
        let input = stack("x", Datatype::Fp32, [(&shape[..], &row[..]); REQUESTS], None).unwrap();
        backend.run(&[input], &mut read).unwrap();
    };
    let (((), allocations), asked) = bytes_of(|| allocations_of(run));
    assert!(bodies.iter().all(|body| body.ends_with(&row)));
    let written: usize = bodies.iter().map(|body| body.len()).sum();
    assert!(
        (written..=written + SMALL).contains(&asked),
        "{asked} bytes asked for, for replies of {written}"
    );
    allocations
}

#[test]
fn a_batch_is_copied_once_on_its_way_in_and_once_on_its_way_out() {
    // Nothing else in this process loads the library, or reads the environment behind the standard library's lock.
    disable_telemetry();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    std::fs::write(&file, models::doubled().encode_to_vec()).unwrap();
    let runtime = Runtime::load(&setup::onnxruntime().unwrap()).unwrap();
    let mut backend = runtime.open(&file, &InstanceGroup::default(), 0).unwrap();
    answer(&mut backend, 16);
    let (few, many) = (answer(&mut backend, 16), answer(&mut backend, 100_000));
    assert!(many <= few + REQUESTS, "{few} allocations for rows of 16 elements, {many} for rows of 100,000");
}
