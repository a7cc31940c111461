//! Profiles: what layers cost on kinds of devices, kept for the next job; stores of them, and files from elsewhere.
//!
//! ```text
//!   run's store ---------+
//!   sailor, aceso, trace +--> account (of one source) --> library --> collection --> list, diff, export, plan
//!   adaptis.profiles/1 --+                                (merged)     (pooled)
//! ```

pub mod account;
mod aceso;
pub mod cells;
pub mod columns;
pub mod doubt;
pub mod earlier;
mod error;
pub mod evidence;
pub mod exchange;
pub mod gathered;
pub mod import;
pub mod kind;
pub mod library;
pub mod measurement;
pub mod sailor;
pub mod sketch;
mod source;
pub mod straggler;
pub(crate) mod tables;
mod text;

pub use adaptis_coordinator_core::predict::{CannotPredict, Prediction, Predictor, Source};
pub use error::LibraryError;
pub use measurement::{Cell, MeasuredPhase, Measurement, condense};
pub use source::content_of;
pub use text::NoJson;

/// The wall clock in seconds since 1970: profiles outlive every other clock.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
