//! What a rank does with a plan, without a socket, a thread or a clock.
//!
//! ```text
//!   RankOrder --> gate --> Effect          a rank's place in the protocol of changing plans
//!   Row -------> interpreter --> Backend   one iteration of a plan, over any backend and any transport
//!                           \--> Transport
//!   Vote x N --> vote --> Verdict          the all-gather before the optimizer
//!   Plan, Plan -> migration --> Move x N   which layers change device
//! ```
//!
//! Pure: messages come in as arguments, effects go out as values. The shell owns the wires and the time, and decides
//! nothing. A rank keeps nothing on disk: a restarted process is a new, empty incarnation.

pub mod gate;
pub mod interpreter;
pub mod migration;
pub mod vote;

pub use gate::{Ballot, Begin, Effect, Gate, Proposal, State};
pub use interpreter::{Backend, Stopped, Transport, run};
pub use migration::{Migration, Move};
pub use vote::{Apply, Next, Rules, Verdict, judge};
