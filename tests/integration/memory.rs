//! A flood of the largest messages allowed does not make a worker grow beyond what its configuration adds up to.

use std::time::Duration;

use lapin::Confirmation;
use millrace_harness::models;
use millrace_tests::foreign::{Foreign, rows};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};

const MIB: usize = 1 << 20;
const TIERS: [&str; 3] = ["premium", "enterprise", "free"];
const BODY_BYTES: usize = MIB;
const LANE_BYTES: usize = 4 * MIB;
const REPLY_BYTES: usize = MIB;
const MAX_BATCH_SIZE: usize = 2;
const PREFETCH_EXTRA: usize = 2;
const EACH_TIER: usize = 80;

/// The most memory that a process has ever had.
fn peak_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024
}

/// A good request, filled up to the limit with what JSON allows between its words.
fn largest() -> Vec<u8> {
    let mut body = rows(&[[1.0; 4]]);
    body.resize(BODY_BYTES, b' ');
    body
}

#[tokio::test]
async fn a_flood_of_the_largest_messages_is_bounded_by_the_configuration() {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = {MAX_BATCH_SIZE}\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(25))
        .set("LIMITS__MAX_BODY_BYTES", &BODY_BYTES.to_string())
        .set("SCHEDULING__LANE_MAX_BYTES", &LANE_BYTES.to_string())
        .set("SCHEDULING__PREFETCH_EXTRA", &PREFETCH_EXTRA.to_string())
        .set("SCHEDULING__PREFETCH_WAIT_MS", "60000")
        .set("REPLIES__MAX_IN_FLIGHT_BYTES", &REPLY_BYTES.to_string());
    let mut worker = stack.worker();
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;
    let before = peak_bytes(worker.pid());
    let body = largest();
    let keys = TIERS.map(|tier| format!("slow.{tier}"));
    let properties =
        std::iter::repeat_with(|| foreign.properties()).take(EACH_TIER * TIERS.len()).collect::<Vec<_>>();
    let ids: Vec<String> = properties.iter().map(|p| p.message_id().clone().unwrap().to_string()).collect();
    let publishes = properties
        .into_iter()
        .enumerate()
        .map(|(number, properties)| foreign.publish(&keys[number % keys.len()], properties, &body));
    let confirms = futures_util::future::join_all(publishes).await;
    assert!(confirms.iter().all(|confirm| *confirm == Confirmation::Ack(None)));
    let (answers, _) = foreign.answers(&ids, READY + Duration::from_secs(60)).await;
    assert!(answers.values().all(|answer| answer.status == "ok"), "{answers:?}");

    // What waits in lanes, what the broker sends ahead (a batch that runs, one that forms, and more), what is on its way out.
    let ahead = (2 * MAX_BATCH_SIZE + PREFETCH_EXTRA) * BODY_BYTES;
    let bound = TIERS.len() * (LANE_BYTES + ahead) + REPLY_BYTES;
    let sent = ids.len() * BODY_BYTES;
    let grown = peak_bytes(worker.pid()) - before;
    println!(
        "{} MiB of requests; the worker grew by {} MiB, its configuration says {}",
        sent / MIB,
        grown / MIB,
        bound / MIB
    );
    // Bodies exist twice for a moment, and the allocator keeps some of what it had.
    assert!(grown <= 2 * bound + 32 * MIB, "grew by {grown} bytes, the configuration says {bound}");
    assert!(2 * bound + 32 * MIB < sent, "a worker that takes everything would pass");
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
}
