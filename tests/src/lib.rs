//! What the integration tests share: a stack of its own for each test, on a broker that all tests share.

pub mod batch;
pub mod foreign;
pub mod management;
pub mod raw;
pub mod stack;
