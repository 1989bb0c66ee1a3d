//! Conformance: the ONNX project's own node cases, through broker and worker, against ONNX Runtime called directly.
//!
//! Each case is a model of one operator or a few, with inputs and the outputs that ONNX says they give. A case passes when
//! the reply is bit-identical to a direct run of the same bytes *and* near enough to the stored outputs. What the protocol
//! cannot carry must be refused with the documented error. Everything else stands in `skip.toml` with its reason.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod case;
mod chunk;
mod reference;
mod skip_list;
mod tolerance;
mod verdict;
mod wire;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use millrace_harness::setup;
use millrace_worker::model::onnx::disable_telemetry;

use case::Case;
use reference::{Prepared, Reference};
use skip_list::SkipList;
use verdict::Tally;

/// Least cases that must pass; 1.21.0 has 1,678, of which a direct run in Python passes 1,436 (notes, 2026-11).
const MUST_PASS: usize = 1_380;

#[test]
fn onnx_node_cases_come_back_bit_for_bit() {
    // Nothing else in this process loads the library, or reads the environment behind the standard library's lock.
    disable_telemetry();
    let started = Instant::now();
    let skip_list = SkipList::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/skip.toml"));
    let cases = Case::all(&setup::onnx_node_tests().unwrap());
    let reference = Reference::load(&setup::onnxruntime().unwrap());
    let names: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let prepared: Vec<Prepared> = cases.into_iter().map(|case| reference.prepare(case)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let verdicts = runtime.block_on(chunk::judge_all(prepared));
    let tally = Tally::of(&skip_list, &names, verdicts);
    // Not by `println`, which shows nothing of a test that passes.
    writeln!(std::io::stderr(), "conformance in {:.1?}: {tally}", started.elapsed()).unwrap();
    assert!(tally.problems.is_empty(), "{} problems:\n{}", tally.problems.len(), tally.problems.join("\n"));
    assert!(tally.passed >= MUST_PASS, "only {} cases pass, {MUST_PASS} must", tally.passed);
}
