//! Requests that their callers have cancelled: none of them reaches a model that did not have it yet.
//!
//! A cancellation comes to every worker, since nobody knows which has the request, or will have it. It is remembered for as long as there
//! is room; a worker that starts later does not know of it.

use super::remembered::Remembered;

/// What is cancelled. Shared by intake, which learns of it, and instances, which look before each run.
pub type Cancelled = Remembered;
