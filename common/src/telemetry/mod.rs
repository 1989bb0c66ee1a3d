//! What a process tells about itself.

pub mod logs;
mod stderr;
