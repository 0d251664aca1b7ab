use std::path::PathBuf;

use thicket_checkpoint::CheckpointError;

/// Why a two-tower checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    /// The weights cannot be read, or hold more than the model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `configs.yaml` or the vocabulary file cannot be read or written.
    #[error("cannot access {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// `configs.yaml` does not say what is needed.
    #[error("{}: {field}: {reason}", path.display())]
    Options {
        /// The file.
        path: PathBuf,
        /// The option.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The sizes do not make a model.
    #[error("{field}: {reason}")]
    Config {
        /// The size that is wrong.
        field: &'static str,
        /// The rule and the actual value.
        reason: String,
    },
    /// A tensor that decides a size is not there.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that decides a size has the wrong number of dimensions.
    #[error("tensor {name} has shape {actual:?}, {expected} is expected")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        actual: Vec<usize>,
        /// The form of the right shape.
        expected: &'static str,
    },
    /// A tensor is missing, mis-shaped or not finite, or the device failed while it was read.
    #[error("{reason}")]
    Weights {
        /// The tensor and what is wrong with it.
        reason: String,
    },
    /// The vocabulary does not belong to the weights.
    #[error("the vocabulary has {vocabulary} entries, the token embedding {embedding} rows")]
    VocabularySize {
        /// Entries of the vocabulary, the two marks included.
        vocabulary: usize,
        /// Rows of `token_embedding.weight`.
        embedding: usize,
    },
    /// The vocabulary file breaks its format.
    #[error("the vocabulary is damaged: {reason}")]
    Vocabulary {
        /// What is wrong with it.
        reason: String,
    },
}

impl ClipError {
    /// A failure of the tensor library; its first line, because the rest is a backtrace.
    pub(crate) fn weights(cause: &candle_core::Error) -> Self {
        Self::Weights { reason: first_line(cause) }
    }
}

pub(crate) fn first_line(cause: &candle_core::Error) -> String {
    cause.to_string().lines().next().unwrap_or_default().to_owned()
}
