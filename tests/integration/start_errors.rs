//! What keeps a worker from starting: it says what is missing, and what to do about it.

use std::path::Path;

use millrace_harness::models;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};

const LIBRARY: &str = "MILLRACE__ONNXRUNTIME__LIBRARY";

/// Lays files into a model version's folder.
type Prepare<'a> = &'a dyn Fn(&Path);

fn stack(config: &str) -> Stack {
    Stack::new().config("m", config).model("m", &models::scale(1.0))
}

/// Runs a worker that must end by itself; returns its exit code and what it printed.
fn end_of(stack: &Stack, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut worker = stack.spawn_worker(arguments, environment);
    let status = worker.wait(READY).unwrap();
    (status.code(), format!("{}{}", worker.stdout(), worker.stderr()))
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing from:\n{text}");
    }
}

#[test]
fn a_gpu_that_cannot_be_had_is_an_error_and_no_silent_fall_to_the_cpu() {
    for (kind, parts) in [
        ("cuda", ["cuda execution provider cannot be had", "onnxruntime-gpu", "kind = \"cpu\""]),
        ("tensorrt", ["tensorrt execution provider cannot be had", "libnvinfer.so.10", "\"cpu\""]),
    ] {
        let stack = stack(&format!("[[instance_group]]\nkind = \"{kind}\"\n"));
        let (code, text) = end_of(&stack, &[], &[]);
        assert_eq!(code, Some(1), "{text}");
        assert_says(&text, &["cannot start", "model `m` version 1"]);
        assert_says(&text, &parts);
        assert!(!text.contains("ready worker="), "{text}");
    }
}

#[test]
fn a_library_that_cannot_be_had_is_an_error_with_a_remedy() {
    let stack = stack(ONE_INSTANCE);
    let text_file = stack.repository().join("library.so");
    std::fs::write(&text_file, "not a library").unwrap();
    let nowhere = stack.repository().join("nowhere.so");
    let folder = stack.repository().to_owned();
    for library in [nowhere.as_path(), &text_file, &folder, &another_library()] {
        let library = library.to_str().unwrap();
        let (code, text) = end_of(&stack, &[], &[(LIBRARY, library)]);
        assert_eq!(code, Some(1), "{library}: {text}");
        assert_says(&text, &["cannot load ONNX Runtime", library, "onnxruntime.library", "1.24"]);
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// A real library that is not the one: libc, as this very process has it.
fn another_library() -> std::path::PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().find_map(|line| {
        let path = line.split_whitespace().nth(5)?;
        Path::new(path).file_name()?.to_str()?.starts_with("libc.so").then_some(path)
    });
    path.expect("this process uses libc").into()
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let stack = stack(ONE_INSTANCE);
    let file = stack.repository().join("m").join("1").join("model.onnx");
    std::fs::write(&file, "not a model").unwrap();
    let (code, text) = end_of(&stack, &[], &[]);
    assert_eq!(code, Some(1), "{text}");
    assert_says(&text, &["model `m` version 1", "cannot load the model", file.to_str().unwrap()]);
}

/// A model may have its weights in files of their own, in its folder; a model file of somebody else's making must not read others.
#[test]
fn weights_outside_the_models_folder_are_refused() {
    let weights: Vec<u8> = [2.0f32; 4].iter().flat_map(|value| value.to_le_bytes()).collect();
    let load = |location: &str, prepare: Prepare<'_>| {
        let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale_in_file(location));
        std::fs::write(stack.repository().join("secret.bin"), &weights).unwrap();
        prepare(&stack.repository().join("m").join("1"));
        let mut worker =
            stack.spawn_worker(&[], &[("MILLRACE_AMQP_URL", "amqp://guest:guest@127.0.0.1:1/%2f")]);
        // It loads its models before it connects; a good one waits for the broker.
        let waits = worker.wait_for_line("waiting for the broker", READY).is_ok();
        let text = worker.stderr();
        (waits, text)
    };
    let nothing = |_: &Path| {};
    let (loads, text) =
        load("weights.bin", &|folder| std::fs::write(folder.join("weights.bin"), &weights).unwrap());
    assert!(loads, "weights beside the model: {text}");
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), &weights).unwrap();
    let link =
        |folder: &Path| std::os::unix::fs::symlink("../../secret.bin", folder.join("weights.bin")).unwrap();
    let linked_folder = |folder: &Path| std::os::unix::fs::symlink("../..", folder.join("deeper")).unwrap();
    let cases: [(&str, Prepare<'_>); 6] = [
        ("../../secret.bin", &nothing),
        ("../../../../../../../../../../etc/passwd", &nothing),
        (outside.path().to_str().unwrap(), &nothing),
        ("weights.bin", &link),
        ("deeper/secret.bin", &linked_folder),
        ("/dev/zero", &nothing),
    ];
    for (location, prepare) in cases {
        let (loads, text) = load(location, prepare);
        assert!(!loads, "{location} is loaded: {text}");
        assert_says(&text, &["cannot start", "model `m` version 1", "cannot load the model"]);
    }
}

#[test]
fn check_config_names_key_value_and_remedy() {
    let good = stack(ONE_INSTANCE);
    let (code, text) = end_of(&good, &["--check-config"], &[]);
    assert_eq!(code, Some(0), "{text}");
    assert_says(&text, &["model m: versions [1]", "configuration is fine"]);

    let nowhere = good.repository().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let cases: [(&str, &str, &[&str]); 9] = [
        ("MILLRACE__WORKER__GRACE_SECONDS", "0", &["`worker.grace_seconds` is 0", "from 1 to 3600"]),
        ("MILLRACE__WORKER__GRACE_SECONDS", "soon", &["worker.grace_seconds", "soon"]),
        ("MILLRACE__WORKER__GRACE", "5", &["unknown field `grace`", "grace_seconds"]),
        (
            "MILLRACE__TOPOLOGY__QUEUE_TYPE",
            "stream",
            &["topology.queue_type", "`stream`", "quorum or classic"],
        ),
        ("MILLRACE__TOPOLOGY__PREFIX", "a.b", &["`topology.prefix` is a.b", "A-Z a-z 0-9 _ -"]),
        (
            "MILLRACE_AMQP_URL",
            "localhost",
            &["broker.addresses", "not a broker address", "amqp://USER:PASSWORD@"],
        ),
        (LIBRARY, "", &["`onnxruntime.library` is empty", LIBRARY]),
        (
            "MILLRACE__MODELS__REPOSITORY",
            nowhere,
            &[nowhere, "models.repository", "<model>/<version>/model.onnx"],
        ),
        ("MILLRACE_CONFIG", nowhere, &[nowhere]),
    ];
    for (key, value, parts) in cases {
        let (code, text) = end_of(&good, &["--check-config"], &[(key, value)]);
        assert_eq!(code, Some(2), "{key}={value}: {text}");
        assert_says(&text, parts);
        // Without the option, too, it does not get any further.
        let (code, text) = end_of(&good, &[], &[(key, value)]);
        assert_eq!(code, Some(2), "{key}={value}: {text}");
    }

    for (config, parts) in [
        ("max_batch_size = 0", ["`max_batch_size` is 0", "from 1 to 65536"]),
        ("max_batch = 8", ["unknown field `max_batch`", "max_batch_size"]),
        (
            "[[instance_group]]\ntiers = [\"gold\"]",
            ["`instance_group.tiers` is gold", "premium, enterprise, free"],
        ),
        (
            "[[instance_group]]\ntiers = [\"premium\", \"free\"]",
            ["`instance_group.tiers` is without enterprise", "leave `tiers` out of one"],
        ),
        ("[[instance_group]]\ngpus = [0]", ["`instance_group.gpus` is [0]", "kind = \"cuda\""]),
    ] {
        let bad = stack(config);
        let (code, text) = end_of(&bad, &["--check-config"], &[]);
        assert_eq!(code, Some(2), "{config}: {text}");
        assert_says(&text, &parts);
        assert_says(&text, &[bad.repository().join("m").join("config.toml").to_str().unwrap()]);
    }
}
