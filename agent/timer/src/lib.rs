//! Times what a GPU works at by the driver's events, and writes samples through the recorder. Linked into the training
//! process.
//!
//! ```text
//!   host     begin   end  begin  end ........ boundary k+1 ............ boundary k+2: asked, by query
//!              |      |     |     |                                          |
//!   stream   --o======o-----o=====o--    events of a fixed pool      elapsed(o, o) = duration
//!   anchor   ^ known on the host's clock, within half of what the call took  elapsed(anchor, o) = start
//! ```
//!
//! 1. Training never waits for us: no call synchronises. An event is asked once an iteration later and then once a
//!    boundary; one that is never ready is given up.
//! 2. Everything is made at the start: later there is no allocation, of the host's memory or the device's, but for names of
//!    works that share intervals, each once. Only an event that was given up is destroyed and made anew, since a pending one
//!    is never recorded again.
//! 3. `begun = recorded + given_up + abandoned + unplaced + lost + pending`, after every call.
//! 4. What measuring costs is measured, on the host and on the device, and kept within a budget by the governor.
//! 5. After an error that ends a context nothing more is asked of the driver.
//! 6. It works on any thread, whichever context is current there: autograd has threads of its own.
//! 7. A stream that captures a graph is left alone, and no question ends somebody else's capture.
//!
//! Function pointers are taken from the library that `cudarc` loads, and answers are numbers: its own bindings panic on a
//! missing function, and their enumeration has no room for an error of a newer driver.
//!
//! Left out on purpose: making a context. The training process has one; the agent has one only while it calibrates a card
//! before training, and times nothing else.

mod account;
mod alignment;
mod anchor;
mod calibrate;
mod driver;
mod error;
mod host;
mod lane;
mod shares;
mod timer;

pub use account::{Counters, Figures, Next, Options, What};
pub use calibrate::{Measured, calibrate, rates};
pub use driver::Stream;
pub use error::TimerError;
pub use host::calibrate_host;
pub use shares::{Share, Shares};
pub use timer::{Ticket, Timer};
