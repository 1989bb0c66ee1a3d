//! What the integration tests share: a stack of its own for each test, on a broker that all tests share.

pub mod batch;
pub mod faulty;
pub mod foreign;
pub mod ledger;
pub mod load;
pub mod management;
pub mod proxy;
pub mod raw;
pub mod stack;
pub mod vitals;
