//! While all tiers are backlogged each gets its weight's share of the fleet, however many workers there are and however skewed
//! the load is.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack};
use ndarray::Array2;

use crate::MACHINE;

/// With the default weights, and requests in flight, enough to keep every lane of every worker filled, also while a busy disk delays
/// confirms for seconds: free traffic floods, premium is the least.
const TIERS: [(&str, f64, usize); 3] =
    [("premium", 8.0, 1600), ("enterprise", 4.0, 1800), ("free", 1.0, 3000)];
const SETTLE: Duration = Duration::from_secs(4);
const MEASURE: Duration = Duration::from_secs(8);

async fn flood(client: &Client, tier: &str, in_flight: usize, answered: &AtomicUsize, is_over: &AtomicBool) {
    let row = Array2::from_elem((1, 4), 1.0f32);
    let requests =
        std::iter::repeat_with(|| Request::new("slow").tier(tier).input_array("x", row.view()).unwrap());
    let requests = requests.take_while(|_| !is_over.load(Ordering::Relaxed));
    let mut results = client.stream(stream::iter(requests), in_flight);
    while let Some((_, result)) = results.next().await {
        result.unwrap();
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

async fn shares(workers: usize) {
    let stack = Stack::new()
        .config("slow", &format!("max_batch_size = 4\n{ONE_INSTANCE}"))
        .model("slow", &models::slow(20));
    let mut running: Vec<_> = (0..workers).map(|_| stack.worker()).collect();
    let client = stack.client().await;
    let answered = [const { AtomicUsize::new(0) }; 3];
    let is_over = AtomicBool::new(false);
    let floods = TIERS
        .iter()
        .zip(&answered)
        .map(|((tier, _, in_flight), answered)| flood(&client, tier, *in_flight, answered, &is_over));
    let watch = async {
        let counts = || answered.each_ref().map(|count| count.load(Ordering::Relaxed));
        tokio::time::sleep(SETTLE).await;
        let before = counts();
        tokio::time::sleep(MEASURE).await;
        let after = counts();
        is_over.store(true, Ordering::Relaxed);
        [0, 1, 2].map(|tier| (after[tier] - before[tier]) as f64)
    };
    let (_, served) = tokio::join!(futures_util::future::join_all(floods), watch);
    let (total, weights) =
        (served.iter().sum::<f64>(), TIERS.iter().map(|(_, weight, _)| weight).sum::<f64>());
    for ((tier, weight, _), served_of_tier) in TIERS.iter().zip(served) {
        let (share, wanted) = (served_of_tier / total, weight / weights);
        assert!(
            (share - wanted).abs() <= 0.05,
            "{workers} workers: {tier} got {share:.3} of {wanted:.3}, {served:?}"
        );
    }
    client.close().await;
    for worker in &mut running {
        worker.terminate();
        assert_eq!(worker.wait(READY).unwrap().code(), Some(0), "{}", worker.stderr());
    }
}

#[tokio::test]
async fn tiers_get_their_shares_of_one_worker_of_two_and_of_four() {
    let _alone = MACHINE.lock().await;
    shares(1).await;
    shares(2).await;
    shares(4).await;
}
