//! What a layer phase costs on a kind of device where it was never measured.

pub mod measurement;

pub use measurement::{Cell, MeasuredPhase, Measurement, UnknownPhase, condense};
