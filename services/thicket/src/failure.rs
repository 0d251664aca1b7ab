use std::fmt::Display;

/// Why a command did not do what it was asked. One line for a person; the kind decides the exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line or an input is wrong; asking again will not help. Exit status 2.
    #[error("{message}")]
    BadInput {
        /// What is wrong, with the field, the limit and the actual value.
        message: String,
    },
    /// The work failed. Exit status 1.
    #[error("{message}")]
    Failed {
        /// What was being done and what went wrong.
        message: String,
    },
}

impl Failure {
    /// Refuses an input.
    pub(crate) fn bad_input(message: impl Display) -> Self {
        Self::BadInput { message: one_line(message) }
    }

    /// Reports work that failed.
    pub(crate) fn failed(message: impl Display) -> Self {
        Self::Failed { message: one_line(message) }
    }

    /// The exit status that tells a script which of the two it was.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::BadInput { .. } => 2,
            Self::Failed { .. } => 1,
        }
    }
}

/// A message as one line: scripts read the last line of stderr, and a multi-line cause would hide the rest.
fn one_line(message: impl Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        let failure = Failure::bad_input("first\n  second\n");
        assert_eq!(failure.to_string(), "first second");
        assert_eq!(failure.exit_status(), 2);
    }
}
