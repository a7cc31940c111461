//! Batching, delivery, accounting, sketches and clock offset of an agent, without any input or output.
//!
//! ```text
//!   ring ---> building ---> chunks in memory ---> in flight ---> stored at the coordinator
//!                                  |                  ^
//!                                  +---> spool -------+        only when the ring fills up unacknowledged
//! ```
//!
//! Pure: [`Agent::on_event`] takes the time and what happened and returns what to do; [`Agent::deadline`] says when to
//! come back with [`Event::Ticked`] at the latest.
//!
//! 1. A ring is told to free records only once they are stored at the coordinator, safe in the spool, or counted as
//!    dropped. Until then the ring itself keeps them: a killed agent loses nothing.
//! 2. Records of a ring are sent in the order of their numbers. After silence everything in flight is sent again,
//!    slower and slower, one batch at a time until the coordinator answers.
//! 3. Where numbers will never come, an empty batch says so, after everything before the gap is stored.
//! 4. `taken = stored + dropped + queued`, after every event; dropped is split by cause.
//! 5. Nothing an outsider sends can make records count as stored that were not taken.
//!
//! Beside it, each pure as well: [`Governor`] chooses which works are timed, [`Rota`] which questions a driver is asked
//! when, [`Meter`] makes rates of counters.

mod agent;
mod clock;
mod counters;
mod event;
mod governor;
mod limits;
mod meter;
mod rota;
mod sketch;
mod stream;

pub use agent::Agent;
pub use clock::ClockEstimate;
pub use counters::Counters;
pub use event::{Effect, Event, SpooledRange};
pub use governor::{Governor, GovernorLimits, Spent};
pub use limits::Limits;
pub use meter::Meter;
pub use rota::Rota;
pub use sketch::{LayerSummary, Sketches};
