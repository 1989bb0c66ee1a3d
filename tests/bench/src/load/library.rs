//! A client of our library.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use millrace_producer::{Client, Code, Config, Error, Request, Response};

use super::{Arrivals, Fate, Spec, served};
use crate::workload::Workload;

/// The configuration of a client of one stack.
pub(crate) fn config(url: &str, prefix: &str, workload: Workload) -> Result<Config> {
    let mut config = Config::load(None)?;
    config.broker.addresses = vec![url.parse()?];
    config.topology.prefix = prefix.to_owned();
    config.topology.queue_type = workload.queue_type;
    config.topology.tiers.iter_mut().for_each(|tier| tier.shards = workload.shards);
    Ok(config)
}

pub(super) struct Library {
    client: Client,
    request: Request,
    /// Requests that the broker has taken.
    taken: AtomicUsize,
    /// How many make a whole burst, where there is one: then it is told when the broker has them.
    burst: Option<usize>,
}

impl Library {
    pub(super) async fn connect(spec: &Spec) -> Result<Self> {
        let mut config = config(&spec.url, &spec.prefix, spec.workload)?;
        if !spec.workload.is_packed {
            config.requests.pack_linger_us = 0;
        }
        let client = Client::connect(config).await?;
        let request = spec.workload.request(&spec.tier)?.deadline(spec.deadline);
        let burst = if let Arrivals::Burst { count } = spec.arrivals { Some(count) } else { None };
        Ok(Self { client, request, taken: AtomicUsize::new(0), burst })
    }

    pub(super) async fn send(&self) -> Fate {
        match self.infer().await {
            Ok(fate) => fate,
            Err(Error::Refused { code: Code::Overloaded, .. }) => Fate::Refused,
            Err(Error::Failed { code: Code::DeadlineExceeded, .. } | Error::DeadlineExceeded { .. }) => {
                Fate::Expired
            }
            // It waited for its confirm until its deadline.
            Err(Error::UnknownOutcome { .. }) => Fate::Expired,
            Err(error) => Fate::Failed(error.to_string()),
        }
    }

    async fn infer(&self) -> Result<Fate, Error> {
        let response = match self.burst {
            None => self.client.infer(self.request.clone()).await?,
            Some(burst) => Box::pin(self.told(burst)).await?,
        };
        let timing = response.timing();
        let in_worker = timing.queue_us + timing.batch_us + timing.infer_us;
        Ok(served(in_worker, timing.infer_us, timing.batch_size))
    }

    /// As [`Client::infer`], and tells once the broker has a whole burst.
    async fn told(&self, burst: usize) -> Result<Response, Error> {
        let handle = self.client.submit(self.request.clone()).await?;
        if self.taken.fetch_add(1, Ordering::Relaxed) + 1 == burst {
            println!("{}", super::process::ALL_TAKEN);
        }
        handle.outcome().await
    }

    pub(super) async fn close(&self) {
        self.client.close().await;
    }
}
