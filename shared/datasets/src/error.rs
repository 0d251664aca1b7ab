use std::path::PathBuf;

/// Why a data set cannot be used. Every message is one line and starts with the file it is about.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// No annotation file where one should be.
    #[error("{}: no annotation file here; looked for {}", folder.display(), names.join(", "))]
    NoAnnotation {
        /// The folder looked into.
        folder: PathBuf,
        /// The file names that would have been accepted.
        names: Vec<String>,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The annotation file is too large to be one.
    #[error("{}: is {actual} bytes long, more than the limit of {limit}", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Largest size accepted, bytes.
        limit: u64,
        /// Its size, bytes.
        actual: u64,
    },
    /// The file is not a whole JSON document.
    #[error("{}: damaged or half-written JSON at line {line}, column {column}: {reason}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// The file is JSON, but not a list of image records.
    #[error("{}: not a list of image records at line {line}, column {column}: {reason}", file.display())]
    NotRecords {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A field of a record is missing or of the wrong kind.
    #[error("{}: record {record}: {field} {reason}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// Record, from 0.
        record: usize,
        /// The key.
        field: String,
        /// What is wrong, with the limit and the actual value.
        reason: String,
    },
    /// An image path that leaves the data set's folder.
    #[error("{}: record {record}: {field} is {path:?}, which must be a relative path without \"..\"", file.display())]
    PathEscape {
        /// The file.
        file: PathBuf,
        /// Record, from 0.
        record: usize,
        /// The key.
        field: &'static str,
        /// The path as written.
        path: String,
    },
    /// The training identities do not count up without a gap.
    #[error(
        "{}: the {identities} training identities must be {first} to {last} without a gap, but {missing} is missing",
        file.display()
    )]
    IdentityGap {
        /// The file.
        file: PathBuf,
        /// Distinct training identities.
        identities: usize,
        /// First id expected.
        first: i64,
        /// Last id expected.
        last: i64,
        /// The first id that is missing.
        missing: i64,
    },
    /// Image files that are not there.
    #[error("{}: this image and {others} others are missing", first.display())]
    MissingImages {
        /// The first missing file.
        first: PathBuf,
        /// How many more are missing.
        others: usize,
    },
}
