/// Why a model or an index could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The input breaks a limit or a rule that the caller can see; asking again will not help.
    #[error("{field}: {reason}")]
    InvalidInput {
        /// The offending field, in the caller's terms (`text`, `image`, `vector`, `max_tokens`, `adapter`).
        field: &'static str,
        /// What is wrong, with the limit and the actual value.
        reason: String,
    },
    /// The engine failed at its own work: a device fault, a NaN, a bug.
    #[error("{operation} failed: {reason}")]
    Internal {
        /// What was being computed (`image forward pass`, `index search`).
        operation: &'static str,
        /// The cause, for the log.
        reason: String,
    },
    /// Another program that does the work is away or overloaded; asking again later may help.
    #[error("{operation} failed for now: {reason}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        reason: String,
    },
}

impl EngineError {
    /// Wraps a failure of the engine's own work.
    pub fn internal(operation: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Internal { operation, reason: cause.to_string() }
    }

    /// Refuses an input.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidInput { field, reason: reason.into() }
    }
}
