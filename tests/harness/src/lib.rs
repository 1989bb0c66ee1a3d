//! Real brokers, real processes and real ONNX models for Millrace's tests, demo and benchmarks.

pub mod broker;
pub mod meter;
pub mod models;
pub mod onnx;
pub mod process;
pub mod setup;
