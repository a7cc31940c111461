//! Profiles of layers as files: measurements that others made, in their formats and in our own.

pub mod cells;
pub mod gathered;
pub mod kind;
pub mod measurement;
pub mod sailor;

pub use measurement::{Cell, MeasuredPhase, Measurement, condense};

pub use adaptis_coordinator_core::predict::{CannotPredict, Prediction, Predictor, Source};
