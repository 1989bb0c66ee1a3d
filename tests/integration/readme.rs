//! README's Python example, run as printed.

use std::path::Path;
use std::process::Command;

use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::{process::WorkerProcess, setup};

use millrace_tests::stack::READY;

/// The example's lines, out of its fenced block.
fn example() -> String {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```python\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_python_example_gets_a_result() {
    let example = example();
    let lines = example.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 25, "{lines} lines");
    // The example uses the default names, so the broker is this test's own.
    let broker = Broker::start(BrokerOptions::default()).unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/models").display().to_string();
    let library = setup::onnxruntime().unwrap().display().to_string();
    let url = broker.amqp_url();
    let mut worker = WorkerProcess::spawn(
        &[],
        &[
            ("MILLRACE_AMQP_URL", &url),
            ("MILLRACE__MODELS__REPOSITORY", &repository),
            (setup::LIBRARY_VARIABLE, &library),
        ],
    )
    .unwrap();
    worker.wait_for_line("ready worker=", READY).unwrap();
    let output = Command::new("python3")
        .args(["-c", &example])
        .env("MILLRACE_AMQP_URL", &url)
        .env("PYTHONPATH", setup::pika().unwrap())
        .output()
        .unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    // The image is a zero.
    assert!(
        printed.starts_with("ok ") && printed.contains("'label'") && printed.contains("'data': [0]"),
        "{printed}"
    );
}
