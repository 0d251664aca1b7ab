//! Images that are to be somewhere else than they were.

use std::collections::HashSet;
use std::path::Path;

use thicket_blobs::{Blobs, Settings};

use crate::config::ImagesConfig;
use crate::error::{GalleryError, OpenError};
use crate::images::ImageStore;
use crate::store::Store;

/// Opens the place of the images: `wanted`, or else a folder of our own. Images that are in another place are moved: all of
/// them are copied, then the store is told, then they are deleted there. Whenever that is cut off, the next start goes on
/// with it, and no image is ever in no place.
pub(crate) fn open(
    store: &mut Store,
    own: &Path,
    wanted: Option<&ImagesConfig>,
) -> Result<ImageStore, OpenError> {
    let failed = |error: GalleryError| OpenError::Backend { reason: format!("moving the images: {error}") };
    let settings = || wanted.map_or_else(Settings::from_env, |config| config.settings.clone());
    let there = store.images_at().map_err(failed)?;
    let here = wanted.map(|config| config.url.as_str());
    let images = at(store, own, here, settings())?;
    if there.as_deref() == here {
        if here.is_some() && own.exists() {
            // What could not be deleted there when the images were moved.
            let old = ImageStore::open(own)?;
            if !images.is_same_place(&old).map_err(failed)? {
                old.delete_unused(&HashSet::new()).map_err(failed)?;
            }
        }
        return Ok(images);
    }
    let from = there.as_deref().unwrap_or("the data folder");
    let to = here.unwrap_or("the data folder");
    tracing::info!(from, to, "moving the images");
    let old = at(store, own, there.as_deref(), settings())?;
    if images.is_same_place(&old).map_err(failed)? {
        store.set_images_at(here).map_err(failed)?;
        return Ok(images);
    }
    images.copy_from(&old, store.used_images().map_err(failed)?).map_err(failed)?;
    store.set_images_at(here).map_err(failed)?;
    let (deleted, left) = old.delete_unused(&HashSet::new()).map_err(failed)?;
    tracing::info!(from, to, images = deleted, left, "moved the images");
    Ok(images)
}

fn at(store: &mut Store, own: &Path, url: Option<&str>, settings: Settings) -> Result<ImageStore, OpenError> {
    let Some(url) = url else { return ImageStore::open(own) };
    let owner = store.name().map_err(|error| OpenError::Backend { reason: error.to_string() })?;
    ImageStore::open_elsewhere(Blobs::open(url, settings)?, &owner)
}
