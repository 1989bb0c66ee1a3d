//! Answers kept, and equal work done once.
//!
//! Opt-in by model (`requests.cache.models`). A request whose model, version, inputs and wanted outputs equal those of an earlier one gets
//! that one's answer while it is fresh; while the earlier one is away it waits for it, if it is of the same tier: a premium request
//! does not wait in the line of a free one. Degraded answers are not kept. A client speaks for one broker user, so no tenant sees
//! another's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::within;
use millrace_common::protocol::codec::{Encoding, encode_request};
use millrace_common::protocol::request::InferRequest;
use millrace_common::protocol::status::Code;
use millrace_common::tier::check_name;
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::Error;
use crate::request::Request;
use crate::response::Response;

/// Requests with more input than this are not looked up: hashing them would hold up the runtime.
const MOST_HASHED: usize = 256 << 10;
/// What an entry costs beside its tensors.
const ENTRY_BYTES: usize = 512;
/// `x-degraded` of an answer that is no longer fresh.
const STALE: &str = "cached;unavailable";

/// `[requests.cache]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Bytes of answers that are kept, at most.
    pub max_bytes: u64,
    /// Seconds that each model's answers are fresh; other models' are not kept.
    pub models: BTreeMap<String, u64>,
    /// Seconds after that in which an answer stands in where the fleet has none (`unavailable`, `overloaded`), marked as degraded.
    pub stale_seconds: u64,
}

impl Validate for CacheConfig {
    fn validate(&self) -> Result<(), Invalid> {
        within("requests.cache.max_bytes", self.max_bytes, 1 << 20, 1 << 40)?;
        within("requests.cache.stale_seconds", self.stale_seconds, 0, 30 * 86_400)?;
        for (model, seconds) in &self.models {
            check_name(model)
                .map_err(|error| Invalid::new("requests.cache.models", model, error.to_string()))?;
            within(&format!("requests.cache.models.{model}"), *seconds, 1, 30 * 86_400)?;
        }
        Ok(())
    }
}

/// How often the cache helped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Answered at once.
    pub hits: u64,
    /// Answered by an equal request that was away.
    pub joined: u64,
    /// Sent.
    pub misses: u64,
    /// Answered with what was no longer fresh, since the fleet had no answer.
    pub stale: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    joined: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
}

/// A request's input, and its tier's number.
type Key = ([u8; 32], usize);

/// Why nothing is kept: a failure, or an answer that is not the model's own.
#[derive(Debug)]
struct NotKept(Result<Response, Error>);

/// A client's answers.
#[derive(Debug)]
pub(crate) struct ResponseCache {
    config: CacheConfig,
    fresh: Cache<Key, Arc<Response>>,
    /// Fresh ones, and those that have been; shares their bytes.
    stale: Cache<[u8; 32], Arc<Response>>,
    counters: Counters,
}

/// Each model has a time of its own.
struct Lifetimes {
    models: BTreeMap<String, u64>,
    more: u64,
}

impl<K> moka::Expiry<K, Arc<Response>> for Lifetimes {
    fn expire_after_create(
        &self,
        _: &K,
        response: &Arc<Response>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        let seconds = self.models.get(&response.body.model_name).copied().unwrap_or(1);
        Some(Duration::from_secs(seconds + self.more))
    }
}

fn weight(response: &Arc<Response>) -> u32 {
    let data: usize = response.body.outputs.iter().map(|output| output.data.len() + output.name.len()).sum();
    u32::try_from(data + ENTRY_BYTES).unwrap_or(u32::MAX)
}

impl ResponseCache {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let lifetimes = |more| Lifetimes { models: config.models.clone(), more };
        Self {
            config: config.clone(),
            fresh: Cache::builder()
                .max_capacity(config.max_bytes)
                .weigher(|_, response| weight(response))
                .expire_after(lifetimes(0))
                .build(),
            stale: Cache::builder()
                .max_capacity(if config.stale_seconds > 0 { config.max_bytes } else { 0 })
                .weigher(|_, response| weight(response))
                .expire_after(lifetimes(config.stale_seconds))
                .build(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { hits, joined, misses, stale } = &self.counters;
        CacheStats { hits: count(hits), joined: count(joined), misses: count(misses), stale: count(stale) }
    }

    /// What a request's answer is kept under; `None` where its model's are not kept.
    pub(crate) fn key(&self, request: &Request) -> Option<[u8; 32]> {
        if !self.config.models.contains_key(&request.model) {
            return None;
        }
        let inputs = &request.body.inputs;
        if inputs.iter().map(|input| input.data.len()).sum::<usize>() > MOST_HASHED {
            return None;
        }
        let mut body = InferRequest { id: None, ..request.body.clone() };
        // How the answer travels is not part of it.
        body.parameters.remove(InferRequest::BINARY_DATA_OUTPUT);
        body.outputs.iter_mut().for_each(|output| output.binary = None);
        let body = encode_request(&body, Encoding::Binary).ok()?;
        let mut hash = Sha256::new();
        hash.update([u8::from(request.version.is_some())]);
        hash.update(request.version.unwrap_or_default().to_le_bytes());
        hash.update((body.header_length.unwrap_or_default() as u64).to_le_bytes());
        hash.update((request.model.len() as u64).to_le_bytes());
        hash.update(&request.model);
        hash.update(&body.bytes);
        Some(hash.finalize().into())
    }

    /// The answer to a request: one that is kept, that of an equal request which is away, or its own, for which `client` sends it.
    /// `key` is its key.
    pub(crate) async fn answer(
        &self,
        client: &Client,
        request: Request,
        key: [u8; 32],
    ) -> Result<Response, Error> {
        let (correlation_id, body_id) = (request.correlation_id.clone(), request.body.id.clone());
        let tiers = &client.config().topology.tiers;
        let tier = request.tier.as_deref().unwrap_or(client.config().requests.tier.as_str());
        // Refused where it is sent.
        let tier = tiers.iter().position(|known| known.name.as_str() == tier).unwrap_or(tiers.len());
        let response = self.of_equal(client, request, (key, tier, tiers.len())).await?;
        Ok(response.addressed(correlation_id, body_id))
    }

    /// The answer to a request that is equal to this one. `tier` is its tier's number, and `tiers` how many there are.
    async fn of_equal(
        &self,
        client: &Client,
        request: Request,
        (key, tier, tiers): ([u8; 32], usize, usize),
    ) -> Result<Response, Error> {
        let budget = client.budget(&request);
        let deadline = Instant::now() + budget;
        for kept in 0..tiers {
            if let Some(response) = self.fresh.get(&(key, kept)).await {
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                return Ok((*response).clone());
            }
        }
        loop {
            let mut is_own = false;
            let sending = async {
                is_own = true;
                self.counters.misses.fetch_add(1, Ordering::Relaxed);
                match client.infer_anew(request.clone()).await {
                    Ok(response) if response.degraded().is_none() => Ok(Arc::new(response)),
                    other => Err(NotKept(other)),
                }
            };
            let flight = self.fresh.try_get_with((key, tier), sending);
            let Ok(outcome) = tokio::time::timeout_at(deadline, flight).await else {
                return Err(Error::DeadlineExceeded { budget });
            };
            let outcome = match outcome {
                Ok(response) => {
                    if is_own && self.config.stale_seconds > 0 {
                        self.stale.insert(key, Arc::clone(&response)).await;
                    }
                    Ok((*response).clone())
                }
                Err(not_kept) => not_kept.0.clone(),
            };
            // That of one with less time, or that was given up, says nothing of this one.
            if !is_own
                && matches!(
                    outcome.as_ref().map_err(Error::code),
                    Err(Code::DeadlineExceeded | Code::Cancelled)
                )
            {
                continue;
            }
            if !is_own {
                self.counters.joined.fetch_add(1, Ordering::Relaxed);
            }
            return match outcome {
                Err(error) if !request.refuses_degraded => self.stand_in(&key, error).await,
                outcome => outcome,
            };
        }
    }

    /// What was the answer before, where the fleet has none.
    async fn stand_in(&self, key: &[u8; 32], error: Error) -> Result<Response, Error> {
        if !matches!(error.code(), Code::Unavailable | Code::Overloaded) {
            return Err(error);
        }
        let Some(response) = self.stale.get(key).await else { return Err(error) };
        self.counters.stale.fetch_add(1, Ordering::Relaxed);
        let mut response = (*response).clone();
        response.meta.degraded = Some(STALE.to_owned());
        Ok(response)
    }
}
