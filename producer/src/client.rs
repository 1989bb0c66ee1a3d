//! The client: one publishing connection, one reply queue, and the requests that wait.

use std::sync::Arc;
use std::time::Duration;

use millrace_common::amqp::connection::{Connector, wait_up};
use millrace_common::amqp::consumer::{ConsumerGroup, Subscription};
use millrace_common::amqp::message::{ReplyKey, URGENT, header, now_ms};
use millrace_common::amqp::properties::Properties;
use millrace_common::amqp::publisher::{Message, Outcome, Publisher, PublisherOptions};
use millrace_common::amqp::topology::{Names, Topology, apply};
use millrace_common::directory::Directory;
use millrace_common::fleet::{ANNOUNCE_EVERY, Fleet};
use millrace_common::lifecycle::Lifecycle;
use millrace_common::protocol::codec::{Body, Encoding, encode_request};
use millrace_common::protocol::request::{InferRequest, Parameter};
use millrace_common::protocol::status::Code;
use millrace_common::tier::{Tier, check_name};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{ConnectError, Error, RequestError};
use crate::replies::{Orphan, Pending, Place, RawReply, Replies, Reply};
use crate::request::Request;
use crate::response::Response;

/// Pause before a request whose outcome is unknown is published again, under the same id.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
/// Suggested pause after a full queue. A later version computes it from the fleet's rate.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Orphaned replies handed over but not yet taken.
const ORPHANS: usize = 256;

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
    publisher: Publisher,
    publishing: Lifecycle,
    consumers: ConsumerGroup,
    pending: Arc<Pending>,
    directory: OnceCell<Directory>,
}

/// How a client is set up, beyond its configuration.
#[derive(Clone, Debug)]
pub struct Builder {
    config: Config,
    name: String,
    reply_key: Option<String>,
}

impl Builder {
    /// The name shown in the broker's list of connections.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Uses this reply key again, so that replies to an earlier process come to this one.
    #[must_use]
    pub fn reply_key(mut self, key: impl Into<String>) -> Self {
        self.reply_key = Some(key.into());
        self
    }

    /// Connects; replies that no request waits for are acknowledged and dropped.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        Client::open(self, None).await
    }

    /// Connects; replies that no request waits for come out of the channel, which must be read.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_with_orphans(self) -> Result<(Client, mpsc::Receiver<Orphan>), ConnectError> {
        let (sender, orphans) = mpsc::channel(ORPHANS);
        Ok((Client::open(self, Some(sender)).await?, orphans))
    }
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

    async fn open(builder: Builder, orphans: Option<mpsc::Sender<Orphan>>) -> Result<Self, ConnectError> {
        let Builder { config, name, reply_key } = builder;
        let connector = Connector::new(&config.broker, &name)?;
        let user = connector.addresses()[0].user();
        let bad_user = || ConnectError::User { user: user.to_owned() };
        let reply_key = match reply_key {
            Some(key) => ReplyKey::parse(&key).map_err(|_| bad_user())?,
            None => ReplyKey::random(user).map_err(|_| bad_user())?,
        };
        if config.topology.declare {
            apply(&connector, &Topology::shared(&config.topology)).await?;
        }
        let pending = Arc::new(Pending::default());
        let replies = Replies { pending: Arc::clone(&pending), orphans, limits: config.limits.into() };
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
            vec![Subscription {
                queue: names.reply_queue(reply_key.as_str()).into(),
                prefetch: config.requests.reply_prefetch,
            }],
            Arc::new(replies),
        );
        let client = Self {
            inner: Arc::new(Inner {
                request_exchange: names.request_exchange().into(),
                names,
                config,
                connector,
                reply_key,
                publisher,
                publishing,
                consumers,
                pending,
                directory: OnceCell::new(),
            }),
        };
        client.wait_connected().await?;
        Ok(client)
    }

    async fn wait_connected(&self) -> Result<(), ConnectError> {
        let timeout = Duration::from_secs(self.inner.config.broker.connect_timeout_seconds);
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

    /// Requests confirmed or being published whose reply has not come.
    pub fn pending(&self) -> usize {
        self.inner.pending.len()
    }

    /// Publishes a request and awaits its result, at most until its deadline.
    ///
    /// # Errors
    /// [`Error`]; exactly one result or error comes for each request.
    ///
    /// # Cancel safety
    /// Dropping the future gives the result up. The request may still run.
    pub async fn infer(&self, request: Request) -> Result<Response, Error> {
        self.submit(request).await?.outcome().await
    }

    /// Publishes a request and returns once the broker has it; the handle gives the result.
    ///
    /// While the connection is down the request waits here; when a confirm is lost it is published again under the same
    /// id, until its deadline.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Refused`], [`Error::UnknownOutcome`] or [`Error::Closed`].
    pub async fn submit(&self, request: Request) -> Result<Handle, Error> {
        let budget = request.deadline.unwrap_or_else(|| self.inner.config.deadline());
        let deadline = Instant::now() + budget;
        let id = uuid::Uuid::now_v7().to_string();
        let message = self.message(request, &id, budget)?;
        let (place, replied) = self.inner.pending.wait_for(id);
        let mut handle =
            Handle { replied, _place: place, early: None, deadline, budget, client: self.clone() };
        tokio::select! {
            published = self.publish(message, deadline) => published?,
            // The reply can overtake the confirm; it proves that the request was taken.
            Ok(reply) = &mut handle.replied => handle.early = Some(reply),
        }
        Ok(handle)
    }

    async fn publish(&self, message: Message, deadline: Instant) -> Result<(), Error> {
        let mut last = "no answer from the broker".to_owned();
        loop {
            let publishing = self.inner.publisher.publish(message.clone());
            match tokio::time::timeout_at(deadline, publishing).await {
                Err(_) => {
                    return Err(Error::UnknownOutcome {
                        reason: format!("no confirm before the deadline ({last})"),
                    });
                }
                Ok(Outcome::Confirmed) => return Ok(()),
                Ok(Outcome::Refused) => {
                    return Err(Error::Refused {
                        code: Code::Overloaded,
                        message: format!("the queue of `{}` is full", message.routing_key),
                        retry_after: Some(OVERLOADED_RETRY_AFTER),
                    });
                }
                Ok(Outcome::Unroutable) => {
                    return Err(Error::Refused {
                        code: Code::UnknownModel,
                        message: format!(
                            "no queue for `{}`: no worker has served this model and tier yet",
                            message.routing_key
                        ),
                        retry_after: None,
                    });
                }
                Ok(Outcome::NotSent(_)) => return Err(Error::Closed),
                Ok(Outcome::Unknown(reason)) => last = reason,
            }
            tokio::time::sleep(AGAIN_PAUSE).await;
        }
    }

    fn message(&self, request: Request, id: &str, budget: Duration) -> Result<Message, RequestError> {
        let tier = self.tier(request.tier.as_deref())?;
        check_name(&request.model)?;
        let body = encode(request.body, request.encoding)?;
        let limit = self.inner.config.limits.max_body_bytes;
        if body.bytes.len() > limit {
            return Err(RequestError::TooLarge { bytes: body.bytes.len(), limit });
        }
        let budget_ms = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut properties = Properties::persistent()
            .with_message_id(id)
            .with_reply_to(self.inner.reply_key.as_str())
            .with_user_id(self.inner.reply_key.user())
            .with_content_type(body.content_type())
            .with_expiration(&budget_ms.min(u64::from(u32::MAX)).to_string())
            .with_count(header::PUBLISHED_MS, now_ms())
            .with_count(header::BUDGET_MS, budget_ms);
        if let Some(length) = body.header_length {
            properties = properties.with_count(header::HEADER_LENGTH, length as u64);
        }
        if let Some(id) = &request.correlation_id {
            properties = properties.with_correlation_id(id);
        }
        if let Some(version) = request.version {
            properties = properties.with_count(header::MODEL_VERSION, version);
        }
        if request.is_urgent {
            properties = properties.with_priority(URGENT);
        }
        Ok(Message {
            exchange: Arc::clone(&self.inner.request_exchange),
            routing_key: Names::request_key(&request.model, &tier),
            properties,
            body: body.bytes,
            mandatory: true,
        })
    }

    fn tier(&self, name: Option<&str>) -> Result<Tier, RequestError> {
        let config = &self.inner.config;
        let Some(name) = name else { return Ok(config.requests.tier.clone()) };
        let tier = Tier::new(name)?;
        if config.topology.tier(&tier).is_none() {
            let known: Vec<String> = config.topology.tiers.iter().map(|tier| tier.name.to_string()).collect();
            return Err(RequestError::UnknownTier { tier: name.to_owned(), known: known.join(", ") });
        }
        Ok(tier)
    }

    /// The workers alive, what they serve and hold. The first call listens for a little over a second.
    pub async fn fleet(&self) -> Fleet {
        let start = || async {
            let directory = Directory::listen(self.inner.connector.clone(), &self.inner.config.topology);
            let _ = wait_up(&mut directory.state(), ANNOUNCE_EVERY * 5).await;
            tokio::time::sleep(ANNOUNCE_EVERY + Duration::from_millis(200)).await;
            directory
        };
        self.inner.directory.get_or_init(start).await.fleet()
    }

    /// The broker names in use.
    pub fn names(&self) -> &Names {
        &self.inner.names
    }

    /// Closes the connections. Requests still waiting get no result from this process.
    pub async fn close(&self) {
        let grace = Duration::from_secs(3);
        self.inner.publishing.stop();
        self.inner.publishing.stopped(grace).await;
        self.inner.consumers.close(grace).await;
        if let Some(directory) = self.inner.directory.get() {
            directory.close().await;
        }
    }
}

/// Binary requests want binary answers, unless they say otherwise.
fn encode(mut body: InferRequest, encoding: Encoding) -> Result<Body, RequestError> {
    if encoding == Encoding::Binary {
        body.parameters.entry(InferRequest::BINARY_DATA_OUTPUT.to_owned()).or_insert(Parameter::Bool(true));
    }
    for tensor in &body.inputs {
        tensor.check().map_err(|source| RequestError::Tensor { name: tensor.name.clone(), source })?;
    }
    encode_request(&body, encoding).map_err(|error| RequestError::Encoding(error.to_string()))
}

/// A request that the broker has; gives its result.
#[derive(Debug)]
#[must_use = "dropping the handle gives the result up"]
pub struct Handle {
    replied: oneshot::Receiver<RawReply>,
    early: Option<RawReply>,
    deadline: Instant,
    budget: Duration,
    client: Client,
    _place: Place,
}

impl Handle {
    /// Awaits the result; acknowledges the reply.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`], [`Error::Failed`], [`Error::MalformedReply`] or [`Error::Closed`].
    pub async fn outcome(self) -> Result<Response, Error> {
        let Reply { outcome, receipt } = self.reply().await?;
        receipt.acknowledge();
        outcome
    }

    /// Awaits the reply; the caller acknowledges it, once it is safe, by its receipt.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] or [`Error::Closed`], when there is no reply.
    pub async fn reply(mut self) -> Result<Reply, Error> {
        let raw = match self.early.take() {
            Some(raw) => raw,
            None => match tokio::time::timeout_at(self.deadline, &mut self.replied).await {
                Ok(Ok(raw)) => raw,
                Ok(Err(_)) => return Err(Error::Closed),
                Err(_) => return Err(Error::DeadlineExceeded { budget: self.budget }),
            },
        };
        Ok(raw.decode(self.client.inner.config.limits.into()).await)
    }
}
