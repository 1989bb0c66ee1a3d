//! One line's way to the fleet and back, as often as it takes.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use millrace_producer::{Client, Code, Error, Receipt, Response};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::request::Prepared;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A line's outcome.
#[derive(Debug)]
pub(super) struct Landed {
    /// A result, or why there is none.
    pub(super) outcome: Result<Response, Error>,
    /// Of the reply, where there was one.
    pub(super) receipt: Option<Receipt>,
    /// From the first sending.
    pub(super) latency: Duration,
}

/// Sends a request until there is a result or a failure that stays one. `None`: it gave up between two attempts, because
/// of `stop`; the line is as if it had never been sent.
///
/// A full queue is waited for until the deadline; other failures that may pass are tried again `retries` times.
pub(super) async fn send(
    client: Client,
    prepared: Prepared,
    retries: u32,
    stop: CancellationToken,
) -> Option<Landed> {
    let started = Instant::now();
    let deadline = started + prepared.deadline;
    let mut retries_left = retries;
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter()
        .build();
    loop {
        let budget = deadline.saturating_duration_since(Instant::now());
        let (outcome, receipt) = attempt(&client, prepared.request.clone().deadline(budget)).await;
        let landed = |outcome, receipt| Some(Landed { outcome, receipt, latency: started.elapsed() });
        let wait = match &outcome {
            // Only this process's end closes the client; the next run sends the line.
            Err(Error::Closed) => return None,
            Err(error) => wait_for(error, &mut retries_left),
            Ok(_) => None,
        };
        let Some(least) = wait else { return landed(outcome, receipt) };
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE).max(least);
        if Instant::now() + pause >= deadline {
            return landed(outcome, receipt);
        }
        // This attempt's reply is done with; the line is not.
        receipt.into_iter().for_each(Receipt::acknowledge);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return None,
        }
    }
}

async fn attempt(
    client: &Client,
    request: millrace_producer::Request,
) -> (Result<Response, Error>, Option<Receipt>) {
    let replied = match client.submit(request).await {
        Ok(handle) => handle.reply().await,
        Err(error) => return (Err(error), None),
    };
    match replied {
        Ok(reply) => (reply.outcome, Some(reply.receipt)),
        Err(error) => (Err(error), None),
    }
}

/// How long to wait at least before the next attempt; `None` when there is none.
fn wait_for(error: &Error, retries_left: &mut u32) -> Option<Duration> {
    let (Error::Refused { code, retry_after, .. } | Error::Failed { code, retry_after, .. }) = error else {
        return None;
    };
    match code {
        Code::Overloaded => {}
        Code::Unavailable | Code::RateLimited | Code::BackendTimeout => {
            *retries_left = retries_left.checked_sub(1)?;
        }
        _ => return None,
    }
    Some(retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let failed =
            |code| Error::Failed { code, message: String::new(), retry_after: None, worker: "w".into() };
        let mut left = 1;
        for _ in 0..5 {
            assert!(wait_for(&failed(Code::Overloaded), &mut left).is_some());
        }
        assert_eq!(wait_for(&failed(Code::InvalidInput), &mut left), None);
        assert_eq!(wait_for(&Error::DeadlineExceeded { budget: Duration::ZERO }, &mut left), None);
        assert_eq!(left, 1);
        assert!(wait_for(&failed(Code::Unavailable), &mut left).is_some());
        assert_eq!(wait_for(&failed(Code::Unavailable), &mut left), None);
        let retry_after = Some(Duration::from_secs(3));
        let refused = Error::Refused { code: Code::Overloaded, message: String::new(), retry_after };
        assert_eq!(wait_for(&refused, &mut left), retry_after);
    }
}
