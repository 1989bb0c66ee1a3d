//! Who may depend on whom.

use std::process::Command;

use crate::source::root;

/// Packages that a package must not name among its dependencies.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("common", &["millrace-producer", "millrace-worker", "millrace-harness", "ort"]),
    ("producer", &["millrace-worker", "millrace-harness", "lapin", "ort"]),
    ("producer/cli", &["millrace-worker", "millrace-harness", "lapin", "ort"]),
    ("worker", &["millrace-producer", "millrace-cli", "millrace-harness", "lapin"]),
];

/// What the client library must not bring into its users' programs: HTTP servers, and the inference library.
const NOT_IN_THE_LIBRARY: &[&str] = &[
    "axum",
    "actix-web",
    "hyper",
    "warp",
    "tiny_http",
    "rocket",
    "tonic",
    "ort",
    "ort-sys",
    "millrace-worker",
];

/// Forbidden packages among the normal dependencies, under any name or target.
fn forbidden(manifest: &str, packages: &[&str]) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    let targets =
        manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values);
    let tables = targets.filter_map(toml::Value::as_table).chain([&manifest]);
    let dependencies = tables.filter_map(|table| table.get("dependencies")?.as_table()).flatten();
    let names = dependencies.map(|(name, value)| match value.get("package").and_then(toml::Value::as_str) {
        Some(package) => package.to_owned(),
        None => name.clone(),
    });
    names.filter(|name| packages.contains(&name.as_str())).collect()
}

#[test]
fn producer_and_worker_never_see_each_other() {
    for (folder, packages) in FORBIDDEN {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        assert_eq!(forbidden(&manifest, packages), [""; 0], "{folder}/Cargo.toml");
    }
}

#[test]
fn forbidden_dependencies_are_found() {
    for manifest in [
        "[dependencies]\nlapin = \"4\"",
        "[dependencies]\nlapin.workspace = true",
        "[dependencies]\nrabbit = { package = \"lapin\", version = \"4\" }",
        "[target.'cfg(unix)'.dependencies]\nlapin = { version = \"4\" }",
    ] {
        assert_eq!(forbidden(manifest, &["lapin"]), ["lapin"], "{manifest}");
    }
    assert_eq!(forbidden("[dev-dependencies]\nlapin = \"4\"", &["lapin"]), [""; 0]);
}

/// Names in cargo's flat tree, one `name vVERSION …` a line.
fn names(tree: &str) -> Vec<&str> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn the_client_library_stays_small() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            "millrace-producer",
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = names(&tree);
    assert!(names.contains(&"millrace-producer") && names.contains(&"lapin"), "not the whole tree: {tree}");
    let unwanted: Vec<_> = names.iter().filter(|name| NOT_IN_THE_LIBRARY.contains(name)).collect();
    assert!(unwanted.is_empty(), "{unwanted:?} in the tree of millrace-producer");
}

#[test]
fn crates_come_from_the_public_registry_and_nothing_is_redirected() {
    let lock: toml::Table = std::fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    for source in packages.iter().filter_map(|package| package.get("source")?.as_str()) {
        assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index");
    }
    let config: toml::Table =
        std::fs::read_to_string(root().join(".cargo/config.toml")).unwrap().parse().unwrap();
    for key in ["source", "registries", "registry", "http", "net"] {
        assert!(
            !config.contains_key(key),
            ".cargo/config.toml sets [{key}]: that belongs into the user's own"
        );
    }
}
