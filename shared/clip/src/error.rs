use std::path::PathBuf;

use thicket_checkpoint::CheckpointError;

/// Why a two-tower checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    /// The weights cannot be read, or hold more than the model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The folder's settings do not tell which layout it has.
    #[error(
        "{} holds {found} of configs.yaml (a run of RDE or IRRA) and config.json (a Hugging Face CLIP), one is expected",
        path.display()
    )]
    Layout {
        /// The folder.
        path: PathBuf,
        /// `neither` or `both`.
        found: &'static str,
    },
    /// A settings or vocabulary file cannot be read or written.
    #[error("cannot access {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A settings file does not say what is needed, or says what cannot be followed.
    #[error("{}: {field}: {reason}", path.display())]
    Options {
        /// The file.
        path: PathBuf,
        /// The option, as a path into the file.
        field: String,
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
    /// A settings file says another size than the weights have.
    #[error("{}: {field} is {value}, but tensor {tensor} has shape {shape:?}", path.display())]
    Disagreement {
        /// The settings file.
        path: PathBuf,
        /// The option, as a path into the file.
        field: String,
        /// Its value.
        value: usize,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
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
    /// The tokeniser of a Hugging Face folder is damaged or does not fit the model.
    #[error("{} is no tokeniser of this model: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
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
