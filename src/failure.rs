//! How a command ends when it does not end well: the text for people and the exit code for scripts.

/// Exit code of a negative answer: an invalid plan, an infeasible problem, a failed check or run.
pub const NEGATIVE: u8 = 1;
/// Exit code of wrong usage, or of a file that is not of its format.
pub const USAGE: u8 = 2;
/// Exit code of a trouble with the environment: port, permission, file, unreachable peer.
pub const ENVIRONMENT: u8 = 3;

/// An end with its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// [`NEGATIVE`].
    #[error("{0}")]
    Negative(String),
    /// [`USAGE`].
    #[error("{0}")]
    Usage(String),
    /// [`ENVIRONMENT`].
    #[error("{0}")]
    Environment(String),
    /// 128 + signal.
    #[error("interrupted by signal {0}")]
    Interrupted(u8),
    /// That of a command that was run, which said itself what there was to say.
    #[error("the command ended with exit code {0}")]
    Wrapped(u8),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Negative(_) => NEGATIVE,
            Failure::Usage(_) => USAGE,
            Failure::Environment(_) => ENVIRONMENT,
            Failure::Interrupted(signal) => 128_u8.saturating_add(*signal),
            Failure::Wrapped(code) => *code,
        }
    }
}

/// The exit code of an error: its own, else that of the environment.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(ENVIRONMENT, Failure::code)
}

/// Whether whoever failed has said so itself.
pub fn is_said(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<Failure>(), Some(Failure::Wrapped(_))))
}

/// Shorthand for wrong usage.
pub fn usage(error: impl std::fmt::Display) -> anyhow::Error {
    Failure::Usage(error.to_string()).into()
}

/// Shorthand for a negative answer.
pub fn negative(error: impl std::fmt::Display) -> anyhow::Error {
    Failure::Negative(error.to_string()).into()
}

/// Shorthand for a trouble with the environment.
pub fn environment(error: impl std::fmt::Display) -> anyhow::Error {
    Failure::Environment(error.to_string()).into()
}
