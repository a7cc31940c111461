//! Ids, time, samples and messages: what every part of Adaptis says to another.
//!
//! Pure: no socket, file, clock or thread. Everything that crosses a process boundary is defined here once, so that a
//! change of the wire is a change of this crate.
//!
//! 1. An id is never an index of something else: each has a type of its own (`ids`).
//! 2. A sample is six 64-bit words, so that a ring can publish it word by word without a lock (`sample`).
//! 3. A message is versioned and names its sender's place in history (term, generation, epoch) wherever acting on a
//!    stale one would do harm (`message`).

pub mod ids;
pub mod message;
pub mod rates;
pub mod sample;
pub mod wire;

pub use ids::{
    BadDigest, DeviceIndex, Digest, Epoch, Generation, Incarnation, LayerIndex, Microbatch, RunId, StageIndex, Step,
    Term,
};
