use std::time::Instant;

use tonic::Code;

use crate::proto::Status;

/// Why Milvus did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MilvusError {
    /// A setting cannot be used.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which one (`milvus`, `milvus-token`).
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such collection.
    #[error("milvus has no collection {collection}")]
    UnknownCollection {
        /// Its name in Milvus.
        collection: String,
    },
    /// The collection is not in memory yet.
    #[error("milvus has not loaded collection {collection}")]
    NotLoaded {
        /// Its name in Milvus.
        collection: String,
    },
    /// It cannot be reached, is starting, or lost a part of itself; worth trying again.
    #[error("milvus is not available for {operation}: {reason}")]
    Unavailable {
        /// The call.
        operation: &'static str,
        /// What it said, or the transport.
        reason: String,
    },
    /// It takes no more calls of this kind for now.
    #[error("milvus limits {operation}: {reason}")]
    Busy {
        /// The call.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// Its disk, memory or quota is full.
    #[error("milvus is full, {operation} failed: {reason}")]
    Full {
        /// The call.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// The moment that the caller named has passed. A write may have been done or not.
    #[error("milvus did not do {operation} in time")]
    TimedOut {
        /// The call.
        operation: &'static str,
    },
    /// The answer is larger than a message may be.
    #[error("the answer of milvus to {operation} is too large: {reason}")]
    TooLarge {
        /// The call.
        operation: &'static str,
        /// The transport's words.
        reason: String,
    },
    /// It refuses the token, or the token does not allow this.
    #[error("milvus does not allow {operation}: {reason}")]
    Denied {
        /// The call.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// Anything else that it refused.
    #[error("milvus refused {operation} with code {code}: {reason}")]
    Refused {
        /// The call.
        operation: &'static str,
        /// Its own code.
        code: i32,
        /// What it said.
        reason: String,
    },
    /// An answer that does not fit the question.
    #[error("milvus answered {operation} with {reason}")]
    Answer {
        /// The call.
        operation: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Codes of Milvus, of servers since 2.3 (`code`) and before (`error_code`).
mod codes {
    pub(super) const SERVICE_UNAVAILABLE: i32 = 2;
    pub(super) const MEMORY_FULL: i32 = 3;
    pub(super) const TOO_MANY_REQUESTS: i32 = 4;
    pub(super) const DISK_FULL: i32 = 7;
    pub(super) const RATE_LIMIT: i32 = 8;
    pub(super) const QUOTA: i32 = 9;
    pub(super) const NO_COLLECTION: i32 = 100;
    pub(super) const NOT_LOADED: i32 = 101;
    pub(super) const NOT_FULLY_LOADED: i32 = 103;
    pub(super) const OLD_NO_COLLECTION: i32 = 4;
    pub(super) const OLD_RATE_LIMIT: i32 = 49;
}

impl MilvusError {
    /// What an answer says of itself.
    pub(crate) fn of_status(
        operation: &'static str,
        collection: &str,
        status: Option<&Status>,
    ) -> Result<(), Self> {
        let Some(status) = status else {
            return Err(Self::Answer { operation, reason: "no status".to_owned() });
        };
        let reason = shown(&status.reason);
        let collection = collection.to_owned();
        Err(match (status.code, status.error_code) {
            (0, 0) => return Ok(()),
            (codes::NO_COLLECTION, _) | (0, codes::OLD_NO_COLLECTION) => {
                Self::UnknownCollection { collection }
            }
            (codes::NOT_LOADED | codes::NOT_FULLY_LOADED, _) => Self::NotLoaded { collection },
            (codes::TOO_MANY_REQUESTS | codes::RATE_LIMIT, _) | (0, codes::OLD_RATE_LIMIT) => {
                Self::Busy { operation, reason }
            }
            (codes::MEMORY_FULL | codes::DISK_FULL | codes::QUOTA, _) => Self::Full { operation, reason },
            (codes::SERVICE_UNAVAILABLE, _) => Self::Unavailable { operation, reason },
            _ if status.retriable => Self::Unavailable { operation, reason },
            (0, code) | (code, _) => Self::Refused { operation, code, reason },
        })
    }

    /// What the transport says.
    pub(crate) fn of_transport(operation: &'static str, status: &tonic::Status, until: Instant) -> Self {
        let reason = shown(status.message());
        match status.code() {
            Code::DeadlineExceeded => Self::TimedOut { operation },
            // tonic's own timer reports this.
            Code::Cancelled if Instant::now() >= until => Self::TimedOut { operation },
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied { operation, reason },
            Code::OutOfRange | Code::ResourceExhausted => Self::TooLarge { operation, reason },
            Code::Unavailable | Code::Cancelled | Code::Aborted | Code::Unknown => {
                Self::Unavailable { operation, reason }
            }
            code => Self::Refused { operation, code: code as i32, reason },
        }
    }

    /// True where the same call may succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Somebody else's words as one line of bounded length.
fn shown(text: &str) -> String {
    const CHARS: usize = 300;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32, error_code: i32, retriable: bool) -> MilvusError {
        let status = Status { error_code, reason: "why".to_owned(), code, retriable };
        MilvusError::of_status("Search", "c", Some(&status)).unwrap_err()
    }

    #[test]
    fn an_answer_without_a_code_is_good() {
        MilvusError::of_status("Search", "c", Some(&Status::default())).unwrap();
        assert!(matches!(MilvusError::of_status("Search", "c", None), Err(MilvusError::Answer { .. })));
    }

    #[test]
    fn codes_of_old_and_new_servers_are_told_apart() {
        assert!(matches!(error(100, 4, false), MilvusError::UnknownCollection { .. }));
        assert!(matches!(error(0, 4, false), MilvusError::UnknownCollection { .. }));
        assert!(matches!(error(4, 1, false), MilvusError::Busy { .. }));
        assert!(matches!(error(8, 49, false), MilvusError::Busy { .. }));
        assert!(matches!(error(9, 1, true), MilvusError::Full { .. }));
        assert!(matches!(error(1, 1, true), MilvusError::Unavailable { .. }));
        assert!(matches!(error(1, 1, false), MilvusError::Refused { code: 1, .. }));
        assert!(matches!(error(101, 101, false), MilvusError::NotLoaded { .. }));
    }

    #[test]
    fn long_words_of_a_server_are_cut() {
        assert!(shown(&"wörd ".repeat(1000)).chars().count() < 320);
        assert_eq!(shown(" a\n b "), "a b");
    }
}
