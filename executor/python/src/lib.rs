//! The native half of the Python package `adaptis`: plans, their rows, and the interpreter that runs them.
//!
//! ```text
//!   adaptis.Schedule --> Row --> run --> adaptis-executor-core's interpreter --> Python: layers, torch.distributed
//!              \-------> Session --> adaptis-session --> coordinator
//!                               \--> the ring --> agent --> coordinator
//!                       Timer --> adaptis-timer --^        of layers on a CUDA device
//! ```
//!
//! 1. Nothing is decided here: plans are read, audited and lowered by `adaptis-plan`, rows are run by the one interpreter.
//! 2. A fault of the Python side comes back as the exception that it was, with the instruction noted on it.

mod interpreter;
mod plan;
mod session;
mod timing;

use pyo3::prelude::*;

/// The native half of the package.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::interpreter::run;
    #[pymodule_export]
    use super::plan::{Plan, PlanError, Row, digest};
    #[pymodule_export]
    use super::session::{Session, kind_of, log};
    #[pymodule_export]
    use super::timing::Timer;
}
