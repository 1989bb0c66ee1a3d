//! Publish inference requests to RabbitMQ and get every result back.
//!
//! ```no_run
//! use millrace_producer::{Client, Config, Request};
//! use ndarray::Array2;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(Config::load(None)?).await?;
//! let image = Array2::<f32>::zeros((1, 64));
//! let request = Request::new("digits").tier("premium").input_array("image", image.view())?;
//! let response = client.infer(request).await?;
//! let label = response.array::<i64>("label")?;
//! println!("it is a {}", label[[0]]);
//! client.close().await;
//! # Ok(()) }
//! ```
//!
//! - [`Client::infer`] publishes one request and awaits its result.
//! - [`Client::submit`] returns once the broker has confirmed the request; its [`Handle`] gives the result later.
//! - [`Client::stream`] keeps a bounded number of requests in flight over any stream of them.
//! - [`Client::fleet`] tells which models are served, their signatures, and by which workers.
//!
//! Small requests that are under way at the same time travel together: those of equal model, tier, deadline and shape are joined
//! along axis 0 into one message, where the model allows it, and each still gets its own result or error (row packing, see
//! `requests.pack_linger_us`).
//!
//! Once the broker has said that a queue is full, the client lets no more requests of that model and tier out than answers come
//! back, and answers the others at once with `overloaded` and the time to try again: see [`Error::Refused`].
//!
//! Every request confirmed by the broker gets exactly one answer: a result or a typed [`Error`]. A request may run more
//! than once (a worker may die after running it), but the second answer is dropped here.
#![warn(missing_docs)]

mod builder;
mod cache;
mod cancel;
mod client;
mod config;
mod control;
mod element;
mod error;
mod gate;
mod handle;
mod outgoing;
mod pack;
mod packing;
mod replies;
mod request;
mod response;
mod stream;

pub use builder::Builder;
pub use cache::{CacheConfig, CacheStats};
pub use client::Client;
pub use config::{Config, DEFAULTS, Requests};
pub use element::Element;
pub use error::{ConnectError, Error, RequestError};
pub use handle::Handle;
pub use millrace_common::fleet::{Fleet, ModelStatus, WorkerStatus};
pub use millrace_common::protocol::request::{InferRequest, Parameter};
pub use millrace_common::protocol::response::InferResponse;
pub use millrace_common::protocol::status::Code;
pub use millrace_common::protocol::tensor::{Datatype, Tensor};
pub use replies::{Orphan, Receipt, Reply};
pub use request::Request;
pub use response::Response;
