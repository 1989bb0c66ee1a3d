//! The AMQP layer: the only code that knows the AMQP client library.
//!
//! - [`address`]: broker addresses that never print their password
//! - [`connection`]: connecting, and supervising a connection over its generations
//! - [`guard`]: makes harmless what would end the client library's connection or process
//! - [`greeting`], [`inspect`]: what a broker says of itself, and what exists on it
//! - [`topology`]: exchanges, queues, bindings and policies as data
//! - [`properties`]: message properties and headers, read without trust
//! - [`message`]: what a request's and a reply's properties mean
//! - [`bundle`]: several replies in one message
//! - [`publisher`]: confirmed, mandatory, bounded, overlapping publishes
//! - [`consumer`]: deliveries, and the [`consumer::Ticket`] that settles each of them
//! - [`fetcher`]: single deliveries on demand

pub mod address;
pub mod bundle;
pub mod connection;
pub mod consumer;
pub mod fetcher;
pub mod greeting;
pub mod guard;
pub mod inspect;
pub mod message;
pub mod properties;
pub mod publisher;
mod returns;
mod subscription;
mod ticket;
mod tls;
pub mod topology;
