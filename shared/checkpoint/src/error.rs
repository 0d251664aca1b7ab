use std::path::PathBuf;

/// Why a checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder holds no weights in a known format.
    #[error("{} holds no weights: expected model.safetensors, model.safetensors.index.json or a .pth file", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A file is cut off, damaged, or not what its name says.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pickle names something that is no part of a state dict. Nothing that a pickle names is ever run.
    #[error("{} is refused: its pickle names {name}, which no weights need", path.display())]
    Code {
        /// The file.
        path: PathBuf,
        /// The module and the name in it.
        name: String,
    },
    /// The shard index names a file that is not there.
    #[error("{} names {file}, which is not there", index.display())]
    AbsentShard {
        /// The index file.
        index: PathBuf,
        /// The shard it names.
        file: String,
    },
    /// The shard index names a tensor that its shard does not hold.
    #[error("{} places tensor {tensor} in {file}, which does not hold it", index.display())]
    AbsentTensor {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        file: String,
    },
    /// Tensors were left over after the model was built.
    #[error("{count} tensors of the checkpoint belong to no part of the model, the first is {first}")]
    Unused {
        /// How many.
        count: usize,
        /// The first in name order.
        first: String,
    },
    /// Two tensors have the same name after renaming.
    #[error("two tensors of the checkpoint are both called {name}")]
    Duplicate {
        /// The name.
        name: String,
    },
}
