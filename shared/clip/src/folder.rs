//! Which layout a checkpoint folder has.

use std::path::Path;

use crate::{ClipError, OPTIONS_FILE, hugging_face::CONFIG_FILE};

/// A layout that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A run of RDE, IRRA or Thicket's trainer.
    Run,
    /// What transformers' `save_pretrained` writes of a CLIP model.
    HuggingFace,
}

impl Layout {
    /// Tells the layout by the settings file, of which there must be exactly one.
    ///
    /// # Errors
    /// [`ClipError::Layout`], [`ClipError::File`] where the folder cannot be looked into.
    pub(crate) fn of(dir: &Path) -> Result<Self, ClipError> {
        match (holds(&dir.join(OPTIONS_FILE))?, holds(&dir.join(CONFIG_FILE))?) {
            (true, false) => Ok(Self::Run),
            (false, true) => Ok(Self::HuggingFace),
            (true, true) => Err(ClipError::Layout { path: dir.to_path_buf(), found: "both" }),
            (false, false) => Err(ClipError::Layout { path: dir.to_path_buf(), found: "neither" }),
        }
    }
}

/// True where there is such a file.
///
/// # Errors
/// [`ClipError::File`] where that cannot be told, such as for want of permission.
pub(crate) fn holds(path: &Path) -> Result<bool, ClipError> {
    path.try_exists().map_err(|cause| ClipError::File { path: path.to_path_buf(), reason: cause.to_string() })
}
