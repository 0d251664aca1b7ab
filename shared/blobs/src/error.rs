use std::io;

/// Why an operation on an object was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobError {
    /// The name cannot be that of an object.
    #[error("object name {key:?}: {reason}")]
    Key {
        /// The name as given.
        key: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// No object of that name.
    #[error("there is no object {key}")]
    NotFound {
        /// The name.
        key: String,
    },
    /// The object is larger than objects may be.
    #[error("object {key} has {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The name.
        key: String,
        /// Its size.
        bytes: u64,
        /// Most bytes of an object.
        limit: u64,
    },
    /// The moment that the caller named has passed. A write or a deletion may have been done or not.
    #[error("{operation} {key} was not done in time")]
    TimedOut {
        /// What was being done.
        operation: &'static str,
        /// The name.
        key: String,
    },
    /// The disk, or the share of it that we may use, is full.
    #[error("{operation} {key} failed: no space is left")]
    Full {
        /// What was being done.
        operation: &'static str,
        /// The name.
        key: String,
    },
    /// The credentials are missing, wrong or not enough.
    #[error("{operation} {key} is not allowed: {reason}")]
    Denied {
        /// What was being done.
        operation: &'static str,
        /// The name.
        key: String,
        /// What the server said.
        reason: String,
    },
    /// The server is away or answers with failures of its own; worth trying again.
    #[error("{operation} {key} failed, the object store is not available: {reason}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// The name.
        key: String,
        /// The cause.
        reason: String,
    },
    /// Anything else.
    #[error("{operation} {key} failed: {reason}")]
    Failed {
        /// What was being done.
        operation: &'static str,
        /// The name.
        key: String,
        /// The cause.
        reason: String,
    },
}

/// Why a place for objects cannot be used, in one line.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The URL names no place that is known.
    #[error("object store {url:?}: {reason}")]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder cannot be created, or a setting contradicts another.
    #[error("object store {url} cannot be used: {reason}")]
    Unusable {
        /// The URL as given.
        url: String,
        /// The cause.
        reason: String,
    },
}

impl BlobError {
    /// Sorts a failure by its cause. `remote` tells a server from a folder.
    pub(crate) fn sort(
        operation: &'static str,
        key: &str,
        remote: bool,
        cause: &object_store::Error,
    ) -> Self {
        let key = key.to_owned();
        let reason = one_line(cause);
        match cause {
            object_store::Error::NotFound { .. } => Self::NotFound { key },
            object_store::Error::InvalidPath { .. } => Self::Key { key, reason },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied { operation, key, reason }
            }
            cause if is_full(cause) => Self::Full { operation, key },
            object_store::Error::Generic { .. } if remote => Self::Unavailable { operation, key, reason },
            _ => Self::Failed { operation, key, reason },
        }
    }
}

/// True when the error, or what caused it, is a full disk or an exhausted quota.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            )
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error as one line; most name their causes themselves.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(cause: object_store::Error, remote: bool) -> BlobError {
        BlobError::sort("writing", "a", remote, &cause)
    }

    #[test]
    fn a_full_disk_is_told_from_a_server_that_is_away() {
        let generic =
            |kind| object_store::Error::Generic { store: "test", source: Box::new(io::Error::from(kind)) };
        assert!(matches!(sorted(generic(io::ErrorKind::StorageFull), false), BlobError::Full { .. }));
        let refused = io::ErrorKind::ConnectionRefused;
        assert!(matches!(sorted(generic(refused), true), BlobError::Unavailable { .. }));
        assert!(matches!(sorted(generic(refused), false), BlobError::Failed { .. }));
    }
}
