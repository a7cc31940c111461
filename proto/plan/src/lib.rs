//! Problem, plan, derived transfers and audit: what all sides must agree on.
//!
//! Pure. The coordinator plans with it, every rank checks with it, tools read and write it.
//!
//! 1. A [`Problem`] that came through `read` is sound: indices in range, names unique, sums that fit in 64 bits. A
//!    [`Plan`] that did so has its shape and no more: whether it is *valid* for a problem is the audit's to say, and
//!    only the audit's.
//! 2. A plan is complete: programs, placement and recomputation leave an executor nothing to decide. Sends and receives
//!    follow from it by [`lower()`].
//! 3. The audit shares no code with the search or the simulator.

pub mod audit;
pub mod instruction;
pub mod json;
pub mod lower;
pub mod plan;
pub mod problem;

pub use audit::{Finding, audit, iteration_ns, peak_bytes};
pub use instruction::{Action, Instruction};
pub use json::FormatError;
pub use lower::{CannotLower, Row, Work, lower};
pub use plan::{CannotMap, Plan, Predicted, Stage, crossings};
pub use problem::{Constraints, Cost, Device, Host, Layer, Link, Links, Pair, Pin, Problem, ReceiveBuffers};
