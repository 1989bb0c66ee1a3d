//! Layered configuration: compiled-in defaults, a file, the environment.

pub mod load;
pub mod sections;
