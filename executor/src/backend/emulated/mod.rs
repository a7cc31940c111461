//! An emulated device: real arithmetic, paced to the speed, memory and links of a GPU.
//!
//! ```text
//!   instruction -> memory: room for it?
//!               -> pace: wait for the device and the input
//!               -> bench: layer by layer, the real work (backend/cpu), then the wait for its deadline, then the sample
//!   result      -> leaves when the last layer's real work is done, stamped with the instruction's paced end
//! ```
//!
//! 1. Time and memory follow DESIGN section 3.1 to the nanosecond and the byte, from the truth's costs.
//! 2. What is computed does not depend on them: the same layers in the same order give the same bits under any plan.
//! 3. A sample is what the host's clock showed, never what the truth says.
//!
//! Left out on purpose: the transports, the boundary's vote, when to switch.

mod bench;
#[cfg(test)]
mod busy;
mod calibrate;
mod device;
mod lengths;
pub mod links;
pub mod memory;
mod noise;
pub mod pace;

pub use device::{Device, Iteration};
pub use pace::Late;
