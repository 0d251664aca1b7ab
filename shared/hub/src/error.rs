use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why something could not be had from the hub. Every message is one line and holds no token.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A name given by the caller is not one that the hub can have.
    #[error("{what} {name:?}: {reason}")]
    Name {
        /// `repository`, `revision` or `commit`.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// An environment variable or a path has a value that cannot be used.
    #[error("{name}: {reason}")]
    Setting {
        /// The variable or the path.
        name: String,
        /// What is wrong with its value; a token's value is not in it.
        reason: String,
    },
    /// The network is switched off by the environment and the cache does not have what is asked for.
    #[error("HF_HUB_OFFLINE is set and {repo} at {revision} is not in {}", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// No answer came, after all retries.
    #[error("{host} cannot be reached: {reason} ({})", attempts_text(*attempts))]
    Unreachable {
        /// Host and port.
        host: String,
        /// The cause of the last failure.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The hub wants to know who asks, or does not let that one in.
    #[error("{repo}: the hub refuses access ({status}): {advice}")]
    Refused {
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What an operator can do.
        advice: &'static str,
    },
    /// There is no such repository, or it is not visible to the one who asks.
    #[error("{repo}: the hub has no such model repository")]
    NoRepository {
        /// The repository.
        repo: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo}: there is no revision {revision:?}")]
    NoRevision {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// The hub answered with a status that is not provided for.
    #[error("{url}: the hub answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The hub's answer breaks its own format.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A file name in the hub's answer would lead out of the folder, or cannot be a file's name.
    #[error("the hub names a file {path:?}: {reason}")]
    UnsafePath {
        /// The name as the hub gave it.
        path: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The repository holds no file that was asked for.
    #[error("{repo} at {commit}: {reason}")]
    NothingToPull {
        /// The repository.
        repo: String,
        /// The commit.
        commit: String,
        /// What was looked for and what is there instead.
        reason: String,
    },
    /// A file arrived whole and is not the one that the hub has. What was received has been removed.
    #[error(
        "{path}: checksum mismatch: {expected} expected, {actual} received; what was received is removed"
    )]
    Checksum {
        /// The file.
        path: String,
        /// What the hub says.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The files do not fit the disk.
    #[error("{}: {needed} bytes are needed, {free} are free", at.display())]
    NoSpace {
        /// Where.
        at: PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes free to this user.
        free: u64,
    },
    /// The disk filled up; what has arrived is kept for the next pull.
    #[error("{}: the disk is full; free some space and pull again to go on from here", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

impl HubError {
    /// True where the caller's own words are wrong, so that asking again will not help: a name, a setting, a repository
    /// or a revision that does not exist.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Name { .. }
                | Self::Setting { .. }
                | Self::NoRepository { .. }
                | Self::NoRevision { .. }
                | Self::NothingToPull { .. }
        )
    }

    pub(crate) fn file(path: &Path, cause: &std::io::Error) -> Self {
        match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { path: path.to_path_buf() },
            _ => Self::File { path: path.to_path_buf(), reason: cause.to_string() },
        }
    }
}

fn attempts_text(attempts: u32) -> String {
    if attempts == 1 { "not tried again".to_owned() } else { format!("{attempts} attempts") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_as_one_and_other_failures_by_their_cause() {
        let at = Path::new("/models/x");
        let full = HubError::file(at, &std::io::Error::from(ErrorKind::StorageFull));
        assert!(
            matches!(&full, HubError::DiskFull { .. }) && full.to_string().contains("pull again"),
            "{full}"
        );
        let other = HubError::file(at, &std::io::Error::from(ErrorKind::PermissionDenied)).to_string();
        assert!(other.contains("/models/x") && other.contains("permission"), "{other}");
    }
}
