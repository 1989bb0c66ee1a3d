//! While all tiers are backlogged each gets its weight's share of the fleet, however many workers there are and however skewed
//! the load is.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millrace_common::fleet::{ANNOUNCE_EVERY, WorkerStatus};
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};
use ndarray::Array2;

use crate::MACHINE;

/// With the default weights, and requests in flight, enough to keep every lane of every worker filled, also while a busy disk delays
/// confirms for seconds: free traffic floods, premium is the least.
const TIERS: [(&str, f64, usize); 3] =
    [("premium", 8.0, 1600), ("enterprise", 4.0, 1800), ("free", 1.0, 3000)];
/// What is in flight at the end takes half a minute on an idle machine.
const PATIENCE: Duration = Duration::from_secs(300);
const SETTLE: Duration = Duration::from_secs(4);
const MEASURE: Duration = Duration::from_secs(10);
const BATCH: u64 = 4;
const ATTEMPTS: usize = 4;

async fn flood(client: &Client, tier: &str, in_flight: usize, answered: &AtomicUsize, is_over: &AtomicBool) {
    let row = Array2::from_elem((1, 4), 1.0f32);
    let request = || Request::new("slow").tier(tier).deadline(PATIENCE).input_array("x", row.view()).unwrap();
    let requests = std::iter::repeat_with(request).take_while(|_| !is_over.load(Ordering::Relaxed));
    let mut results = client.stream(stream::iter(requests), in_flight);
    while let Some((_, result)) = results.next().await {
        result.unwrap();
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The number of looks at which every lane of every worker had more than a batch, and of all looks.
async fn backlogged(client: &Client, looks: &mut (usize, usize)) {
    client.fleet().await;
    loop {
        tokio::time::sleep(ANNOUNCE_EVERY).await;
        let fleet = client.fleet().await;
        let is_full = |worker: &WorkerStatus| worker.lanes.iter().all(|lane| lane.requests > BATCH);
        looks.0 += usize::from(fleet.workers().all(is_full));
        looks.1 += 1;
    }
}

/// Returns false where the shares are others because a machine that is busy with other things did not keep up a backlog.
async fn shares(workers: usize) -> bool {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = {BATCH}\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(20));
    let mut running: Vec<_> = (0..workers).map(|_| stack.worker()).collect();
    // A request a message: a lane that holds two packs is full, too, but does not look it.
    let mut config = stack.client_config();
    config.requests.pack_linger_us = 0;
    let client = Client::connect(config).await.unwrap();
    let answered = [const { AtomicUsize::new(0) }; 3];
    let is_over = AtomicBool::new(false);
    let floods = TIERS
        .iter()
        .zip(&answered)
        .map(|((tier, _, in_flight), answered)| flood(&client, tier, *in_flight, answered, &is_over));
    let watch = async {
        let counts = || answered.each_ref().map(|count| count.load(Ordering::Relaxed));
        tokio::time::sleep(SETTLE).await;
        let (before, mut looks) = (counts(), (0, 0));
        let _ = tokio::time::timeout(MEASURE, backlogged(&client, &mut looks)).await;
        let after = counts();
        is_over.store(true, Ordering::Relaxed);
        ([0, 1, 2].map(|tier| (after[tier] - before[tier]) as f64), looks)
    };
    let (_, (served, (full, looks))) = tokio::join!(futures_util::future::join_all(floods), watch);
    let (total, weights) =
        (served.iter().sum::<f64>(), TIERS.iter().map(|(_, weight, _)| weight).sum::<f64>());
    println!("{workers} workers: {served:?}; backlogged at {full} of {looks} looks");
    let errors = TIERS.iter().zip(served).map(|((_, weight, _), served)| served / total - weight / weights);
    let is_right = errors.clone().all(|error| error.abs() <= 0.05);
    // One look at which a lane was short changes little.
    let is_backlogged = looks > 0 && full * 10 >= looks * 8;
    assert!(
        is_right || !is_backlogged,
        "{workers} workers: {served:?} are off by {:.3?} of all",
        errors.collect::<Vec<_>>()
    );
    client.close().await;
    for worker in &mut running {
        worker.terminate();
        assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
    }
    is_right
}

async fn shares_of(workers: usize) {
    for _ in 0..ATTEMPTS {
        if shares(workers).await {
            return;
        }
    }
    panic!(
        "{workers} workers: other shares in {ATTEMPTS} attempts, none backlogged; the machine is too busy, or they do not fetch ahead"
    );
}

#[tokio::test]
async fn tiers_get_their_shares_of_one_worker_of_two_and_of_four() {
    let _alone = MACHINE.lock().await;
    shares_of(1).await;
    shares_of(2).await;
    shares_of(4).await;
}
