use std::path::{Path, PathBuf};

/// Why a training run stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// An option is out of its range.
    #[error("{field} is {actual}, allowed are {allowed}")]
    Option {
        /// The option.
        field: &'static str,
        /// Its value.
        actual: String,
        /// The range.
        allowed: &'static str,
    },
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// A model folder that the run needs cannot be loaded, or the new one cannot be written in its form.
    #[error("{what}: {reason}")]
    Model {
        /// What was being done (`loading the embedding model`).
        what: &'static str,
        /// The cause.
        reason: String,
    },
    /// The loss is no longer a number: the learning rate is too high, or the data is damaged.
    #[error("the loss of step {step} is {loss}: training has diverged")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped at step {step}")]
    Stopped {
        /// The last finished step.
        step: usize,
    },
}

impl TrainingError {
    pub(crate) fn model(what: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Model { what, reason: cause.to_string() }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.to_path_buf(), source }
    }
}
