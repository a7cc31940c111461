//! Starting the parts of a job on one machine, and the faults that a demo makes.

mod fault;
mod process;

pub use fault::{Fault, FaultError, What};
pub use process::{OnOrphaned, Process, end_all, exit_text};
