//! From requests to batches, fairly.
//!
//! - [`lane`]: what waits in one tier
//! - [`batcher`]: when a batch is worth running
//! - [`cap`]: what a tier may take at most
//! - [`cost`]: what a batch costs, learned
//! - [`scheduler`]: whose turn it is
//! - [`pickup`]: where instances wait for and collect their next batch
//! - [`batch`]: rows stacked for the model, and split again
//! - [`runs`]: rows filled up to the largest of their batch, and cut back

pub mod batch;
pub mod batcher;
pub mod cap;
pub mod cost;
pub mod lane;
pub mod pickup;
pub mod runs;
pub mod scheduler;
pub mod tier_set;
