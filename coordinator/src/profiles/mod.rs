//! Profiles of layers as files: measurements that others made, in their formats and in our own.

pub mod kind;
pub mod measurement;
pub mod sailor;

pub use measurement::{Cell, MeasuredPhase, Measurement, condense};
