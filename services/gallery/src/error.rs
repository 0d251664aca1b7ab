use std::io;
use std::path::PathBuf;

use opentelemetry::KeyValue;
use thicket_blobs::BlobError;
use thicket_telemetry::{instruments, names};

/// Why the gallery did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GalleryError {
    /// A field of the request breaks a rule.
    #[error("{field}: {message}")]
    Invalid {
        /// Path of the field as the contract names it (`queries[3].values`).
        field: String,
        /// Upper-case reason, stable across versions.
        reason: &'static str,
        /// The rule and the actual value.
        message: String,
    },
    /// No collection of that name.
    #[error("there is no collection {name:?}")]
    UnknownCollection {
        /// The name.
        name: String,
    },
    /// The collection has no such item.
    #[error("collection {collection:?} has no item {id:?}")]
    UnknownItem {
        /// The collection.
        collection: String,
        /// The caller's id.
        id: String,
    },
    /// No item of the collection has such an image.
    #[error("collection {collection:?} has no image {image:?}")]
    UnknownImage {
        /// The collection.
        collection: String,
        /// The image's hash, or the id of an item without an image.
        image: String,
    },
    /// The name is taken.
    #[error("collection {name:?} exists already")]
    CollectionExists {
        /// The name.
        name: String,
    },
    /// A vector that another model made.
    #[error("collection {collection:?} holds vectors of model {expected:?}, this one is of {actual:?}")]
    ModelMismatch {
        /// The collection.
        collection: String,
        /// Fingerprint of the collection's model.
        expected: String,
        /// Fingerprint given.
        actual: String,
    },
    /// The disk, or the share of it that we may use, is full. Nothing was changed.
    #[error("the disk is full: {operation} failed")]
    DiskFull {
        /// What was being written.
        operation: &'static str,
    },
    /// Too much work is waiting.
    #[error("the {queue} queue is full, its limit is {limit}")]
    QueueFull {
        /// Which queue.
        queue: &'static str,
        /// Most entries that may wait.
        limit: usize,
    },
    /// The answer would not fit a message.
    #[error("the answer has more than {limit} bytes; ask for fewer queries or results at once")]
    AnswerTooLarge {
        /// Most bytes of a message.
        limit: usize,
    },
    /// Stored bytes are missing or not those that were stored.
    #[error("image {image} is lost: {reason}")]
    DataLoss {
        /// Hash of the image.
        image: String,
        /// What was found.
        reason: &'static str,
    },
    /// What keeps the collections or the images is away; worth trying again.
    #[error("{reason}")]
    Unavailable {
        /// Who, and what it said.
        reason: String,
    },
    /// What keeps the collections or the images takes no more for now.
    #[error("{reason}")]
    Busy {
        /// Who, and what it said.
        reason: String,
    },
    /// The time budget is spent. A write may have been done or not.
    #[error("the time budget is spent")]
    TimedOut,
    /// This gallery only follows another one.
    #[error("this gallery is a read replica; writes go to {writer}")]
    ReadReplica {
        /// Address of the writer.
        writer: String,
    },
    /// A read wants to know of a transaction that has not come yet.
    #[error("transaction {wanted} has not come yet, this gallery is at {at}")]
    Behind {
        /// The transaction.
        wanted: u64,
        /// The last one that came.
        at: u64,
    },
    /// A replica whose store has another format.
    #[error("this gallery hands out stores of format {expected}, the replica has format {actual}")]
    OtherFormat {
        /// The format here.
        expected: u64,
        /// The format there.
        actual: u64,
    },
    /// The store was closed and opened again while a replica was told of it.
    #[error("the store was opened anew")]
    StoreReopened,
    /// The gallery is stopping.
    #[error("the gallery is stopping")]
    Stopping,
    /// A fault of ours.
    #[error("{operation} failed: {reason}")]
    Internal {
        /// What was being done.
        operation: &'static str,
        /// The cause, for the log.
        reason: String,
    },
}

impl GalleryError {
    pub(crate) fn invalid(
        field: impl Into<String>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::Invalid { field: field.into(), reason, message: message.into() }
    }

    pub(crate) fn internal(operation: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Internal { operation, reason: cause.to_string() }
    }

    /// Sorts a failure of the object store by its cause.
    pub(crate) fn from_blob(operation: &'static str, error: BlobError) -> Self {
        match error {
            BlobError::Full { .. } => Self::DiskFull { operation },
            BlobError::TimedOut { .. } => Self::TimedOut,
            BlobError::Unavailable { .. } => Self::Unavailable { reason: error.to_string() },
            error => Self::internal(operation, error),
        }
    }

    /// The cause of a failed write in one word of a fixed set, for a metric.
    pub(crate) fn storage_reason(&self) -> &'static str {
        if matches!(self, Self::DiskFull { .. }) { "disk_full" } else { "write_failed" }
    }

    /// Sorts a failed write by its cause: a full disk is the caller's to know, the rest is ours.
    pub(crate) fn from_write(operation: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        if is_disk_full(cause) { Self::DiskFull { operation } } else { Self::internal(operation, cause) }
    }
}

/// True when the error, or what caused it, is a full disk or an exhausted quota.
fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
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
        // redb keeps the I/O error in a variant and names no source.
        if let Some(redb::Error::Io(error)) = error.downcast_ref::<redb::Error>() {
            return is_disk_full(error);
        }
        cause = error.source();
    }
    false
}

/// Counts a fault of what is stored, by its cause in one word of a fixed set.
pub(crate) fn count_storage_fault(reason: &'static str) {
    instruments().gallery_storage_faults.add(1, &[KeyValue::new(names::REASON, reason)]);
}

/// Why a data folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works on the folder.
    #[error("data folder {folder} is in use by another gallery")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// Another gallery keeps its images there.
    #[error("the images at {url} belong to another gallery: give each a place of its own")]
    ImagesInUse {
        /// The place.
        url: String,
    },
    /// The folder was written by a newer version.
    #[error("data folder {folder} has format {found}, this version reads format {expected}")]
    Format {
        /// The folder.
        folder: PathBuf,
        /// The format read.
        expected: u64,
        /// The format found.
        found: u64,
    },
    /// A setting is out of range.
    #[error("{setting}: {reason}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// The range and the actual value.
        reason: String,
    },
    /// What keeps the collections or the images cannot be reached.
    #[error("the gallery cannot start: {reason}")]
    Backend {
        /// The cause.
        reason: String,
    },
    /// The folder cannot be created, read or written.
    #[error("cannot open data folder {folder}: {reason}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        reason: String,
    },
}

impl From<thicket_blobs::OpenError> for OpenError {
    fn from(error: thicket_blobs::OpenError) -> Self {
        match error {
            thicket_blobs::OpenError::Url { .. } => {
                Self::Setting { setting: "images", reason: error.to_string() }
            }
            error => Self::Backend { reason: error.to_string() },
        }
    }
}

impl OpenError {
    /// The cause in one word of a fixed set, for a metric; `None` where it is not about what is stored.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => Some("store_in_use"),
            Self::ImagesInUse { .. } => Some("images_in_use"),
            Self::Backend { .. } => Some("backend_unusable"),
            Self::Format { .. } => Some("store_format"),
            Self::Folder { .. } => Some("store_unreadable"),
            Self::Setting { .. } => None,
        }
    }

    /// True for what the operator must change: another folder, another setting.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Folder { .. } | Self::Backend { .. })
    }

    pub(crate) fn missing(setting: &'static str, reason: &str) -> Self {
        Self::Setting { setting, reason: reason.to_owned() }
    }

    pub(crate) fn folder(folder: &std::path::Path, cause: impl std::fmt::Display) -> Self {
        Self::Folder { folder: folder.to_owned(), reason: cause.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = redb::Error::Io(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(GalleryError::from_write("w", &full), GalleryError::DiskFull { .. }));
        let wrapped = object_store::Error::Generic {
            store: "test",
            source: Box::new(io::Error::from_raw_os_error(28)),
        };
        assert!(matches!(GalleryError::from_write("w", &wrapped), GalleryError::DiskFull { .. }));
        let other = redb::Error::Io(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(GalleryError::from_write("w", &other), GalleryError::Internal { .. }));
    }
}
