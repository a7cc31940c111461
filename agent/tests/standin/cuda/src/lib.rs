//! Answers like the CUDA driver: one device whose streams are queues in time.
//!
//! ```text
//!   host     ----record a---work 3 ms---record b-------------------------->  CLOCK_MONOTONIC
//!   stream        |launch|a|========= 3 ms =========|b|                      an event happens when its queue gets there
//!   device clock = (host - start) x (1 + drift) + offset                     which only differences show, as in life
//! ```
//!
//! A test says how it behaves by `standinSet(knob, value)`, what the device is busy with by `standinWork`, and asks what
//! was called by `standinGet`; the script's lines `cuda.KNOB VALUE` are the first settings. Faults: any call may fail
//! (`error`), events may never get ready (`never_ready`), creating one may fail (`create_error`), there may be no context
//! (`no_context`), a stream may be capturing a graph (`capturing`).

mod calls;
mod machine;
