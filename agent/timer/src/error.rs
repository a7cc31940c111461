//! Why a GPU cannot be timed.

/// Why a GPU cannot be timed. Training goes on without.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimerError {
    /// The library is not there.
    #[error("no {library} on this host: times of a GPU are not to be had")]
    NoLibrary {
        /// Its name.
        library: &'static str,
    },
    /// The library lacks a function.
    #[error("the {library} lacks {function}: update the driver")]
    MissingFunction {
        /// The library's name.
        library: &'static str,
        /// The function's name.
        function: &'static str,
    },
    /// No context is current on this thread.
    #[error("no CUDA context is current on this thread: start the timer after the training process has set its device")]
    NoContext,
    /// A call failed.
    #[error("{function} failed with CUDA error {code}")]
    Call {
        /// Which call.
        function: &'static str,
        /// The driver's number for it.
        code: u32,
    },
    /// A pool too small to time one work, or too large.
    #[error("a pool of {requested} events is not possible: take 2 to {max}", max = crate::lane::EVENTS_MAX)]
    Pool {
        /// What was asked for.
        requested: usize,
    },
}
