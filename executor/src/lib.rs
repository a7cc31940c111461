//! Worker, transports and CPU backends that execute plans.
//!
//! ```text
//!   coordinator <--link--> adaptis-session <--votes-- training --> backend/emulated --> backend/cpu
//!                                                         \-------> transport/{memory, tcp}
//! ```
//!
//! One process is one rank: a control thread speaks with the coordinator, the calling thread trains.
//!
//! 1. Training never waits for the coordinator: `adaptis-session` sees to it.
//! 2. All decisions are `adaptis-executor-core`'s; this crate owns the sockets, the clock and the device.
//! 3. Every wait of the training thread has a deadline and looks at the stop flag.

pub mod backend;
pub mod clock;
pub mod emulation;
mod error;
pub mod launcher;
mod patience;
pub mod preset;
pub mod tape;
pub mod training;
pub mod transport;
pub mod worker;

pub use emulation::Emulation;
pub use error::{ExecutorError, Halt};
pub use worker::{Ended, Options, run};
