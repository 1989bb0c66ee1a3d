//! What a worker's configuration file says while it runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use millrace_harness::models;
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, eventually, milestone};

use super::features::requests_logged;
use super::{SOON, ask, switch};

/// Puts a file in the place that Kubernetes gives a ConfigMap: a link to a link to a folder that is new each time.
fn mount(folder: &Path, generation: &str, toml: &str) {
    let (data, fresh) = (folder.join(generation), folder.join("..new"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("worker.toml"), toml).unwrap();
    symlink(generation, &fresh).unwrap();
    fs::rename(&fresh, folder.join("..data")).unwrap();
    if !folder.join("worker.toml").exists() {
        symlink("..data/worker.toml", folder.join("worker.toml")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_file_is_followed_as_far_as_it_may_change() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.toml").display().to_string();
    mount(folder.path(), "..1", "worker.grace_seconds = 20\n");
    let mut worker = stack.worker_with(&[("MILLRACE_CONFIG", &file)]);
    let client = stack.client().await;
    ask(&client, "m", "free").await.unwrap();
    assert_eq!(requests_logged(&worker), 0);

    mount(folder.path(), "..2", "worker.grace_seconds = 20\n[features]\naccess_log = true\n");
    milestone(&mut worker, "the changed configuration holds").await;
    ask(&client, "m", "free").await.unwrap();
    eventually("the request is logged", SOON, async || requests_logged(&worker) == 1).await;
    // A switch goes before it.
    switch(&stack, &["set", "feature.access_log=off", "--reason", "quiet"]);
    ask(&client, "m", "free").await.unwrap();
    assert_eq!(requests_logged(&worker), 1);
    switch(&stack, &["clear", "feature.access_log"]);

    // Refused whole, whatever else is in it.
    mount(folder.path(), "..3", "worker.grace_seconds = 3\n[features]\naccess_log = false\n");
    milestone(&mut worker, "restart the worker to change worker.grace_seconds").await;
    mount(
        folder.path(),
        "..4",
        "worker.grace_seconds = 20\n[features]\naccess_log = false\nacces_log = true\n",
    );
    milestone(&mut worker, "unknown field `acces_log`").await;
    ask(&client, "m", "free").await.unwrap();
    eventually("what was goes on", SOON, async || requests_logged(&worker) == 2).await;
    mount(folder.path(), "..5", "worker.grace_seconds = 20\n");
    eventually("it holds", READY, async || worker.stderr().matches("configuration holds").count() == 2).await;
    ask(&client, "m", "free").await.unwrap();
    assert_eq!(requests_logged(&worker), 2);
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    client.close().await;
}
