use std::path::PathBuf;

use thicket_checkpoint::CheckpointError;
use thicket_clip::ClipError;
use thicket_qwen::{AdapterError, LoadError};

/// Why a folder does not pass. One line each, with the file, the field or the tensor.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The folder is none that a loader reads.
    #[error("{}: {reason}", dir.display())]
    Unknown {
        /// The folder.
        dir: PathBuf,
        /// What was looked for and what is there.
        reason: String,
    },
    /// A file cannot be read, or is not what its name says.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// An adapter was named for a model that takes none.
    #[error("an adapter applies to a Qwen vision-language model, {} is {kind}", dir.display())]
    TakesNoAdapter {
        /// The model's folder.
        dir: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The weights, where no loader reads them.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An adapter by itself.
    #[error("{}: {source}", dir.display())]
    Adapter {
        /// The folder.
        dir: PathBuf,
        /// What is refused.
        source: AdapterError,
    },
    /// The loader of embedding models.
    #[error("{}: {source}", dir.display())]
    Embedding {
        /// The folder.
        dir: PathBuf,
        /// What it refuses.
        source: Box<ClipError>,
    },
    /// The loader of answer models.
    #[error(transparent)]
    Answer(#[from] LoadError),
    /// It loads, and computes nothing that can be used.
    #[error("{}: it loads, but a forward pass fails: {reason}", dir.display())]
    Forward {
        /// The folder.
        dir: PathBuf,
        /// What came out.
        reason: String,
    },
}
