//! A small byte-level language model on the CPU, one layer at a time.
//!
//! The unit is a [`Layer`]: what a plan places, a stage chains and a switch moves. Each has three separate functions
//! per microbatch, so that a schedule may put the weight gradient anywhere after the input gradient:
//!
//! ```text
//!   forward           F   input            -> output, stash
//!   input_gradient    I   stash, d output  -> d input; the stash shrinks to what W needs
//!   weight_gradient   W   stash            -> added to the layer's gradients
//! ```
//!
//! 1. A result depends on the arguments and the layer's state alone: not on the process, the stage, the plan or time.
//! 2. F, I and W of one layer in the same microbatch order give the same bits; sums run in one fixed order.
//! 3. F run again on the same input gives the same bits (recomputation).
//! 4. Parameters are a pure function of (layer type, shape, seed, index), batches of (text, seed, step, microbatch).
//! 5. Everything that a layer must keep when it moves is in its exported state, and its digest covers all of that.
//!
//! Bits may differ between kinds of CPU, as the matrix kernels do. Left out on purpose: threads, batches of more than
//! one sequence, dropout, biases, a load-balancing loss, tied weights.

mod activation;
mod adamw;
mod attention;
mod embedding;
mod error;
mod head;
mod layer;
mod matmul;
mod mlp;
mod moe;
mod norm;
mod parameter;
mod shape;
mod stash;
mod state;
mod state_space;
#[cfg(test)]
mod tests;
mod text;

pub use adamw::AdamW;
pub use error::{LayerTypeError, StateError, TextError};
pub use layer::{Input, Layer};
pub use shape::{LayerType, Shape};
pub use stash::Stash;
pub use text::Text;
