//! Models: where they lie, what they look like, and what runs them.
//!
//! - [`config`]: a model's own `config.toml`, with Triton's names
//! - [`repository`]: folders to names and versions
//! - [`signature`]: inputs and outputs, and whether rows can be batched
//! - [`padding`]: rows of unlike inner sizes made alike, and what undoes it
//! - [`backend`]: what any back end does
//! - [`onnx`]: ONNX Runtime, the only file that knows it
//! - [`warmup`]: invented runs before the first request
//! - `assemble`: requests to a batch, and its outputs to their answers
//! - `bisect`: finding the guilty of a failed batch
//! - [`instance`]: a thread that owns a back end and runs batches
//! - [`instances`]: all of them

mod assemble;
pub mod backend;
mod bisect;
pub mod config;
pub mod instance;
pub mod instances;
pub mod onnx;
pub mod padding;
pub mod repository;
pub mod signature;
pub mod warmup;
