//! Stand-ins for the GPU drivers, so that the code that talks to drivers runs where there is no GPU.
//!
//! ```text
//!   test --alone()--> the same test in a process of its own, LD_LIBRARY_PATH = a folder of the stage
//!                       libcuda.so, libnvidia-ml.so.1, libcublas.so   found there by the real loaders
//!                       script                                       what they answer, re-read or set by call
//! ```
//!
//! 1. Real loaders find the stand-ins by the drivers' own file names, in one process only: nothing is put where another
//!    process would look, and a real driver of the machine is left alone.
//! 2. A function that a driver lacks is one whose name was struck from a copy of the library: the loader's own search
//!    fails.
//! 3. A stand-in answers from its script alone. It has no GPU's arithmetic; it has a GPU's order and time.

mod script;
mod stage;

pub use script::{Script, script_path};
pub use stage::{Library, Stage};
