//! The coordinator's mind, without any input or output: what the job costs, when that changed, what would be better,
//! whether it pays, and how all ranks get there.
//!
//! ```text
//!   records -> estimate -> (drift: did it change?) -> [search] -> admission: does it pay? -> round -> ledger, orders
//!                                            all of it driven by brain, one event at a time
//!   recorded jobs -> diagnose: what is slow, what that costs, what would win it back
//! ```
//!
//! 1. Time, seeds and the results of searches come in as events; what is to be done goes out as values ([`brain`]).
//! 2. What must be on disk before a message leaves is a value that holds that message ([`brain::Effect::Persist`]).
//! 3. Every decision is a record with its reason as data, written when it is made ([`ledger`]).
//!
//! Left out on purpose: sockets, files, clocks, threads, and the text of anything but a status line.

pub mod admission;
pub mod brain;
pub mod crossings;
pub mod diagnose;
pub mod drift;
pub mod estimate;
pub mod ledger;
pub mod membership;
pub mod next_job;
pub mod predict;
pub mod round;

pub use brain::{Advice, Brain, Config, Effect, Event, Mode};
pub use ledger::{Durable, Head, Recovered};
