//! Simulates and searches for plans: partition, placement, schedule and recomputation.
//!
//! ```text
//!   problem --> costs --> shape (partition, placement, recompute) --> tables
//!                                                                      |
//!              bounds        listing: tables -> programs  <------------+------> replay: programs -> time
//!                                      ^                                               ^
//!                                      +------ search: portfolio, structure, order ----+
//!                                                                                       |
//!                                              noise: times drawn from jitter ----------+
//! ```
//!
//! Pure: no clock (the caller stops a search by its own), no file; randomness comes from a seed. Threads are the search's
//! alone, end with it, and change nothing of its result.
//!
//! 1. `costs` alone knows what a stage takes and holds; `replay` alone knows when an instruction starts.
//! 2. A plan that leaves `search` or `schedule` is valid by its own audit, or there is an error instead.
//! 3. The same problem, start, seed and number of evaluations give the same plan, on any number of threads.

pub mod bounds;
mod costs;
mod course;
mod crowd;
pub mod explain;
pub mod export;
#[doc(hidden)]
pub mod inner_loops;
mod listing;
mod memory;
pub mod moves;
pub mod noise;
mod partition;
mod program;
mod random;
mod recipe;
mod replay;
mod rules;
pub mod schedule;
pub mod search;
mod shape;
pub mod simulate;
mod wakes;
