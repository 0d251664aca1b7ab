//! What one-off use of a checkpoint folder has in common.

use std::path::Path;

use thicket_imaging::{Limits, RgbImage};

use crate::{Failure, disk};

/// The name a one-off model goes by: its folder's.
pub(crate) fn model_name(dir: &Path) -> String {
    dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned()
}

/// Reads and decodes an image file within the limits that the servers have.
///
/// # Errors
/// [`Failure::BadInput`] with the file and the reason.
pub(crate) fn read_image(path: &Path) -> Result<RgbImage, Failure> {
    let limits = Limits::default();
    let refuse = |reason: String| Failure::bad_input(format!("image: {}: {reason}", path.display()));
    let bytes = disk::read_at_most(path, limits.encoded_bytes).map_err(refuse)?;
    thicket_imaging::decode(&bytes, &limits).map_err(|error| refuse(error.to_string()))
}
