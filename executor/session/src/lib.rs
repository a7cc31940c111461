//! A rank's conversation with the coordinator, the same for every trainer: the native one and that of PyTorch.
//!
//! ```text
//!   coordinator <--link--> control --orders--> station <--votes-- training
//!                                   (gate, prepared plans)
//! ```
//!
//! 1. Training never waits for the coordinator: it meets the control thread only at the station's lock, which nobody
//!    holds across input, output or an audit.
//! 2. All decisions are `adaptis-executor-core`'s.
//!
//! Left out on purpose: how ranks reach one another, and what they train.

pub mod attendance;
pub mod compiled;
pub mod control;
pub mod kind;
pub mod station;

pub use attendance::{Attendance, Heard, Standing, Word};
pub use compiled::{Compiled, Compiler, Room};
pub use control::{Control, News};
pub use kind::kind_of;
pub use station::{Conclusion, Errand, Station};

/// Iterations after a start or a switch whose samples are kept apart.
pub const COLD_ITERATIONS: u64 = 3;
