//! What executes the phases of a layer.

pub mod cpu;
pub mod emulated;
