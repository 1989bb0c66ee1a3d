//! The client: one publishing connection, one reply queue, and the requests that wait.

pub(crate) mod publish;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millrace_common::amqp::connection::{Connector, LinkState, wait_up};
use millrace_common::amqp::consumer::{ConsumerGroup, Subscription};
use millrace_common::amqp::message::ReplyKey;
use millrace_common::amqp::publisher::{Outcome, Publisher, PublisherOptions};
use millrace_common::amqp::topology::{Names, Topology, apply, delete_queue};
use millrace_common::config::load::{ConfigError, Validate};
use millrace_common::control::{Control, MAX_IDS};
use millrace_common::directory::Directory;
use millrace_common::fleet::{ANNOUNCE_EVERY, Fleet};
use millrace_common::lifecycle::Lifecycle;
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::builder::Builder;
use crate::cache::{CacheStats, ResponseCache};
use crate::cancel::Cancel;
use crate::config::Config;
use crate::control::{Command, Controller};
use crate::error::{ConnectError, Error};
use crate::gate::Gate;
use crate::handle::Handle;
use crate::outgoing::{Outgoing, Route};
use crate::packing::{Away, Packing, Way};
use crate::replies::{Orphan, Pending, Replies};
use crate::request::Request;
use crate::response::Response;

/// The longest that a request may wait, as the configuration's own bound.
const LONGEST_BUDGET: Duration = Duration::from_secs(30 * 86_400);

/// Publishes requests and hands out their results. Cheap to clone; clones share connections and reply queue.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    connector: Connector,
    names: Names,
    request_exchange: Arc<str>,
    reply_key: ReplyKey,
    /// Nobody will consume the reply queue after this client.
    is_ephemeral: bool,
    publisher: Publisher,
    publishing: Lifecycle,
    consumers: ConsumerGroup,
    pending: Arc<Pending>,
    gate: Mutex<Gate>,
    packing: Arc<Packing>,
    controller: Controller,
    cache: ResponseCache,
    directory: OnceLock<Directory>,
    /// Set once the directory has heard of the whole fleet.
    heard: OnceCell<()>,
}

impl Client {
    /// Connects with a fresh reply queue.
    ///
    /// # Errors
    /// [`ConnectError`], naming the remedy where one is known.
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        Self::builder(config).connect().await
    }

    /// Sets more than the configuration says.
    pub fn builder(config: Config) -> Builder {
        Builder { config, name: "millrace-producer".to_owned(), reply_key: None }
    }

    pub(crate) async fn open(
        builder: Builder,
        orphans: Option<mpsc::Sender<Orphan>>,
    ) -> Result<Self, ConnectError> {
        let Builder { config, name, reply_key } = builder;
        config.validate().map_err(ConfigError::from)?;
        let connector = Connector::new(&config.broker, &name)?;
        let user = connector.addresses()[0].user();
        let is_ephemeral = reply_key.is_none() && orphans.is_none();
        let reply_key = match reply_key {
            Some(key) => ReplyKey::parse(&key)
                .ok()
                .filter(|parsed| parsed.user() == user)
                .ok_or_else(|| ConnectError::ReplyKey { key, user: user.to_owned() })?,
            None => ReplyKey::random(user).map_err(|_| ConnectError::User { user: user.to_owned() })?,
        };
        if config.topology.declare {
            apply(&connector, &Topology::shared(&config.topology)).await?;
        }
        let pending = Arc::new(Pending::default());
        let limits = config.limits.into();
        let replies = Replies { pending: Arc::clone(&pending), orphans, is_ephemeral, limits };
        let names = config.topology.names();
        let publishing = Lifecycle::new();
        let options = PublisherOptions {
            max_in_flight: config.requests.max_in_flight,
            max_in_flight_bytes: config.requests.max_in_flight_bytes,
            ..PublisherOptions::default()
        };
        let publisher = Publisher::spawn(connector.clone(), "requests", options, &publishing);
        let expires = Duration::from_secs(config.requests.reply_expires_seconds);
        let consumers = ConsumerGroup::spawn(
            connector.clone(),
            "replies",
            Topology::reply(&config.topology, reply_key.as_str(), expires),
            vec![Subscription::fixed(names.reply_queue(reply_key.as_str()), config.requests.reply_prefetch)],
            Arc::new(replies),
        );
        let cache = ResponseCache::new(&config.requests.cache);
        let packing = Arc::new(Packing::new(Duration::from_micros(config.requests.pack_linger_us)));
        let client = Self {
            inner: Arc::new(Inner {
                request_exchange: names.request_exchange().into(),
                names,
                config,
                connector,
                reply_key,
                is_ephemeral,
                publisher,
                publishing,
                consumers,
                pending,
                gate: Mutex::default(),
                packing,
                controller: Controller::default(),
                cache,
                directory: OnceLock::new(),
                heard: OnceCell::new(),
            }),
        };
        client.wait_connected().await?;
        if !client.inner.packing.is_off() {
            // How many rows make a pack is to be known as soon as there are some.
            client.directory();
        }
        Ok(client)
    }

    async fn wait_connected(&self) -> Result<(), ConnectError> {
        // Every address may take its whole time.
        let addresses = u32::try_from(self.inner.connector.addresses().len()).unwrap_or(u32::MAX);
        let timeout = Duration::from_secs(self.inner.config.broker.connect_timeout_seconds) * addresses;
        for mut state in [self.inner.consumers.state(), self.inner.publisher.state()] {
            wait_up(&mut state, timeout)
                .await
                .map_err(|error| error.map_or(ConnectError::Timeout(timeout), ConnectError::Broker))?;
        }
        Ok(())
    }

    /// The configuration in use.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The reply key in use.
    pub fn reply_key(&self) -> &str {
        self.inner.reply_key.as_str()
    }

    /// Requests that have no answer; a pack counts besides its members.
    pub fn pending(&self) -> usize {
        self.inner.pending.len() + self.inner.packing.waiting()
    }

    /// Publishes a request and awaits its result, at most until its deadline.
    ///
    /// While others of its kind are away it may wait for company, `requests.pack_linger_us` at most, to travel in a pack. Where its
    /// model's answers are kept (`requests.cache`) it may get one that is, or that of an equal request that is away; not while an operator
    /// has switched that off (`feature.cache`).
    ///
    /// # Errors
    /// [`Error`]; exactly one result or error comes for each request.
    ///
    /// # Cancel safety
    /// Dropping the future gives the result up. The request may still run.
    pub async fn infer(&self, request: Request) -> Result<Response, Error> {
        let (request, key) = self.keyed(request);
        let Some(key) = key else { return self.infer_anew(request).await };
        // In a box, as what is sent alone: callers hold thousands of these futures, of which hardly one is as large as those.
        Box::pin(self.inner.cache.answer(self, request, key)).await
    }

    /// A request and what its answer is kept under. Borrowed in an async function it would lie in its future twice.
    fn keyed(&self, request: Request) -> (Request, Option<[u8; 32]>) {
        let key = self.inner.cache.key(&request).filter(|_| self.directory().allows_cache());
        (request, key)
    }

    /// How often the cache of answers helped.
    pub fn cache_stats(&self) -> CacheStats {
        self.inner.cache.stats()
    }

    pub(crate) async fn infer_anew(&self, request: Request) -> Result<Response, Error> {
        let handle = match self.way(request, false) {
            // As in [`Handle::reply`].
            Way::Alone(request, away) => {
                tokio::task::unconstrained(Box::pin(self.submit_alone(request, away))).await?
            }
            Way::Packed(_, handle) => handle,
        };
        handle.outcome().await
    }

    /// Publishes a request and returns once the broker has it; the handle gives the result.
    ///
    /// While the connection is down the request waits here; when a confirm is lost it is published again under the same
    /// id, until its deadline. It may travel in a pack, as with [`Client::infer`].
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Refused`], [`Error::UnknownOutcome`], [`Error::DeadlineExceeded`] or [`Error::Closed`].
    pub async fn submit(&self, request: Request) -> Result<Handle, Error> {
        // As in [`Handle::reply`].
        tokio::task::unconstrained(async {
            match self.way(request, true) {
                Way::Alone(request, away) => Box::pin(self.submit_alone(request, away)).await,
                Way::Packed(taken, handle) => {
                    let taken = taken.expect("it was asked for");
                    match tokio::time::timeout_at(handle.deadline(), taken).await {
                        Ok(Ok(())) => Ok(handle),
                        _ => Err(handle.refusal().await),
                    }
                }
            }
        })
        .await
    }

    fn way(&self, request: Request, tell: bool) -> Way {
        let budget = self.budget(&request);
        self.inner.packing.way(self, request, budget, tell)
    }

    pub(crate) fn budget(&self, request: &Request) -> Duration {
        request.deadline.unwrap_or_else(|| self.inner.config.deadline()).min(LONGEST_BUDGET)
    }

    /// Publishes a request by itself.
    pub(crate) async fn submit_alone(&self, request: Request, away: Option<Away>) -> Result<Handle, Error> {
        let budget = self.budget(&request);
        let deadline = Instant::now() + budget;
        let config = &self.inner.config;
        let route = Route::of(&request, config)?;
        // Before anything that costs: refusing thousands a second must cost next to nothing.
        let mut pass = self.admit(&route.key)?;
        let outgoing = Outgoing::prepare(request, route, config)?;
        let (place, mut replied) = self.inner.pending.wait_for(outgoing.id.clone());
        let mut early = None;
        // Dropped from here on without its result, it need not run.
        let mut cancel = Cancel::new(self, &outgoing.id);
        tokio::select! {
            published = self.publish(&outgoing, &mut pass, (deadline, budget)) => {
                published.inspect_err(|error| if !matches!(error, Error::UnknownOutcome { .. }) { cancel.ended() })?;
            }
            // The reply can overtake the confirm; it proves that the request was taken.
            reply = &mut replied => early = Some(reply.map_err(|_| Error::Closed)?),
        }
        pass.taken();
        place.keep(pass);
        Ok(Handle::alone((place, replied), early, away, (deadline, budget), self.clone(), cancel))
    }

    /// Tells the workers not to run requests of this client's user, by their ids. Those that wait are answered `cancelled` when their
    /// turn comes; those that run already, or have run, are not touched. Dropping a [`Handle`] does the same for its request.
    ///
    /// # Errors
    /// [`Error::UnknownOutcome`] when it is not known whether all workers are told that the broker reaches.
    pub async fn cancel(&self, ids: impl IntoIterator<Item = String>) -> Result<(), Error> {
        let inner = &self.inner;
        let sender = {
            let _on = inner.packing.runtime().enter();
            inner.controller.sender(&inner.connector, &inner.names, &inner.publishing)
        };
        let ids: Vec<String> = ids.into_iter().collect();
        for some in ids.chunks(MAX_IDS) {
            let outcome = sender.publish(&Control::cancel(some.to_vec())).await;
            // Without a worker nobody is told, and nobody runs anything. Control queues drop their oldest message where they are full: one
            // that refuses cannot be reached, mostly for being on a node that is down, and all others have it.
            if !matches!(outcome, Outcome::Confirmed | Outcome::Unroutable | Outcome::Refused) {
                return Err(Error::UnknownOutcome {
                    reason: format!("the cancellation was not confirmed: {outcome:?}"),
                });
            }
        }
        Ok(())
    }

    /// As [`Client::cancel`], without waiting.
    pub(crate) fn cancel_soon(&self, id: String) {
        let _on = self.inner.packing.runtime().enter();
        self.inner.tell(Command::Cancel(id));
    }

    /// Whether replies outlive this client, so that a later one may have to tell whom they answer.
    pub(crate) fn keeps_replies(&self) -> bool {
        !self.inner.is_ephemeral
    }

    /// Whether the gate holds requests like this one back, or lets one through as a probe.
    pub(crate) fn is_held_back(&self, request: &Request) -> bool {
        let tier = request.tier.as_deref().unwrap_or(self.inner.config.requests.tier.as_str());
        self.gate().is_closed(&Names::request_key(&request.model, tier))
    }

    /// The fleet's directory; listening begins with the first call, for clients that pack when they have connected.
    pub(crate) fn directory(&self) -> &Directory {
        let listen = || {
            let _on = self.inner.packing.runtime().enter();
            let directory = Directory::listen(self.inner.connector.clone(), &self.inner.config.topology);
            self.ask_who_is_there(directory.state());
            directory
        };
        self.inner.directory.get_or_init(listen)
    }

    /// Asks the workers to announce themselves once this client listens. Where that gets lost they are known a second later.
    fn ask_who_is_there(&self, mut listening: watch::Receiver<LinkState>) {
        let (client, stopping) = (Arc::downgrade(&self.inner), self.inner.publishing.clone());
        self.inner.publishing.spawn(async move {
            let listens = listening.wait_for(|state| matches!(state, LinkState::Up(_)));
            tokio::select! {
                up = listens => if let (Ok(_), Some(inner)) = (up, client.upgrade()) {
                    inner.tell(Command::Announce);
                },
                () = stopping.stopping() => {}
            }
        });
    }

    /// The workers alive, what they serve and hold. The first call listens for a little over a second.
    pub async fn fleet(&self) -> Fleet {
        let directory = self.directory();
        let hear = || async {
            let _ = wait_up(&mut directory.state(), ANNOUNCE_EVERY * 5).await;
            tokio::time::sleep(ANNOUNCE_EVERY + Duration::from_millis(200)).await;
        };
        self.inner.heard.get_or_init(hear).await;
        directory.fleet()
    }

    /// Deletes the reply queue and what waits in it, for a client whose queue would outlive it. That of a client with neither
    /// reply key nor orphans goes when it is closed. What is left behind expires by `requests.reply_expires_seconds`.
    pub async fn delete_reply_queue(&self) {
        let queue = self.inner.names.reply_queue(self.inner.reply_key.as_str());
        let deleting = delete_queue(&self.inner.connector, &queue);
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(3), deleting).await {
            debug!(%error, queue, "the reply queue stays until it expires");
        }
    }

    /// The broker names in use.
    pub fn names(&self) -> &Names {
        &self.inner.names
    }

    /// Closes the connections. Requests still waiting end in [`Error::Closed`]; they may run all the same.
    pub async fn close(&self) {
        let grace = Duration::from_secs(3);
        self.inner.pending.stop();
        let is_up = matches!(&*self.inner.consumers.state().borrow(), LinkState::Up(_));
        self.inner.publishing.stop();
        self.inner.publishing.stopped(grace).await;
        self.inner.consumers.close(grace).await;
        self.inner.pending.give_up();
        self.inner.packing.finish(grace).await;
        if self.inner.is_ephemeral && is_up {
            self.delete_reply_queue().await;
        }
        if let Some(directory) = self.inner.directory.get() {
            directory.close().await;
        }
    }
}

impl Inner {
    fn tell(&self, command: Command) {
        self.controller.tell(command, &self.connector, &self.names, &self.publishing);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.publishing.stop();
    }
}

#[cfg(test)]
mod tests;
