use std::collections::HashSet;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use thicket_blobs::{BlobError, Blobs, Settings};
use uuid::Uuid;

use crate::crash;
use crate::error::{GalleryError, OpenError};
use crate::record::ImageHash;

/// Images written at once; a sync each, which disks do better together.
const PARALLEL_WRITES: usize = 8;
/// How long one image may take to be written, read or deleted.
const IMAGE_LIMIT: Duration = Duration::from_secs(60);
/// How long all images may take to be looked through.
const LISTING_LIMIT: Duration = Duration::from_secs(3600);
/// Names the one gallery whose images they are, in a place that others can reach.
const OWNER: &str = "owner";

/// Image bytes by their hash.
///
/// The object store is asynchronous, the gallery's threads are not: calls wait on a runtime that this store owns, so
/// they must not be made from an async task.
#[derive(Debug)]
pub(crate) struct ImageStore {
    blobs: Blobs,
    /// True for a folder of this gallery alone.
    own: bool,
    /// Present until drop.
    runtime: Option<tokio::runtime::Runtime>,
}

impl ImageStore {
    /// Opens (creates) a folder of images whose writes are synced before they count.
    pub(crate) fn open(folder: &Path) -> Result<Self, OpenError> {
        let failed = |cause: &dyn std::fmt::Display| OpenError::folder(folder, cause);
        let blobs =
            Blobs::in_folder(folder, Settings::default().max_bytes).map_err(|cause| failed(&cause))?;
        let mut store = Self::over(blobs).map_err(|cause| failed(&cause))?;
        store.own = true;
        store.wait(store.blobs.remove_unfinished(Duration::ZERO)).map_err(|cause| failed(&cause))?;
        Ok(store)
    }

    /// Opens a place that others can reach too, which has to be this gallery's alone: `owner` is what tells it from others.
    pub(crate) fn open_elsewhere(blobs: Blobs, owner: &str) -> Result<Self, OpenError> {
        let unusable = |error: &dyn std::fmt::Display| OpenError::Backend { reason: error.to_string() };
        let store = Self::over(blobs).map_err(|error| unusable(&error))?;
        let until = || Instant::now() + IMAGE_LIMIT;
        let claimed = store.wait(async {
            store.blobs.put_if_absent(OWNER, owner.to_owned().into(), until()).await?;
            store.blobs.get(OWNER, until()).await
        });
        match claimed {
            Ok(found) if found == owner.as_bytes() => Ok(store),
            Ok(_) => Err(OpenError::ImagesInUse { url: store.blobs.url().to_owned() }),
            Err(error) => Err(unusable(&error)),
        }
    }

    /// Stores images as `blobs`.
    pub(crate) fn over(blobs: Blobs) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(PARALLEL_WRITES)
            .thread_name("gallery-images")
            .build()?;
        Ok(Self { blobs, own: false, runtime: Some(runtime) })
    }

    /// True where all images can be looked through whenever the gallery starts: not in a place that charges for it.
    pub(crate) fn is_own_folder(&self) -> bool {
        self.own
    }

    /// Writes images; returns one result an image, in order.
    pub(crate) fn put_all(&self, images: Vec<(ImageHash, Bytes)>) -> Vec<Result<(), GalleryError>> {
        let writes = images.into_iter().map(|(hash, bytes)| async move {
            crash::at("image.put");
            let written = self.blobs.put(&location(&hash), bytes, Instant::now() + IMAGE_LIMIT).await;
            crash::at("image.stored");
            written.map_err(|error| GalleryError::from_blob("writing the image", error))
        });
        self.wait(futures::stream::iter(writes).buffered(PARALLEL_WRITES).collect())
    }

    /// True when a file of that image exists with any content.
    pub(crate) fn exists(&self, hash: &ImageHash) -> bool {
        let until = Instant::now() + IMAGE_LIMIT;
        self.wait(self.blobs.exists(&location(hash), until)).unwrap_or(false)
    }

    /// Reads an image and checks that the bytes are those that were stored.
    pub(crate) fn get(&self, hash: &ImageHash) -> Result<Bytes, GalleryError> {
        let lost = |reason| GalleryError::DataLoss { image: hash.to_string(), reason };
        let until = Instant::now() + IMAGE_LIMIT;
        let bytes = match self.wait(self.blobs.get(&location(hash), until)) {
            Ok(bytes) => bytes,
            Err(BlobError::NotFound { .. }) => return Err(lost("the file is missing")),
            Err(error) => return Err(GalleryError::from_blob("reading the image", error)),
        };
        if ImageHash::of(&bytes) != *hash {
            return Err(lost("the file has changed"));
        }
        Ok(bytes)
    }

    /// True where the other store is the same place under another name.
    pub(crate) fn is_same_place(&self, other: &Self) -> Result<bool, GalleryError> {
        let probe = format!("probe-{}", Uuid::new_v4().simple());
        let until = Instant::now() + IMAGE_LIMIT;
        let seen = self.wait(self.blobs.put(&probe, Bytes::new(), until));
        let seen = seen.and_then(|()| other.wait(other.blobs.exists(&probe, until)));
        let deleted = self.wait(self.blobs.delete(&probe, until));
        let failed = |error| GalleryError::from_blob("comparing two places of images", error);
        deleted.map_err(failed)?;
        seen.map_err(failed)
    }

    /// Copies images from another place; those that are here already stay. An image that is lost there is logged: it was lost
    /// before.
    pub(crate) fn copy_from(
        &self,
        other: &Self,
        images: impl IntoIterator<Item = ImageHash>,
    ) -> Result<(), GalleryError> {
        for hash in images {
            if self.exists(&hash) {
                continue;
            }
            match other.get(&hash) {
                Ok(bytes) => self.put_all(vec![(hash, bytes)]).into_iter().collect::<Result<(), _>>()?,
                Err(lost @ GalleryError::DataLoss { .. }) => {
                    tracing::error!(error = %lost, "an image cannot be moved");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes images; returns those that could not be. Each failure is logged, and the next compaction or start collects
    /// what is left.
    pub(crate) fn delete_all<'a>(
        &self,
        hashes: impl IntoIterator<Item = &'a ImageHash>,
    ) -> HashSet<ImageHash> {
        let deletions = hashes.into_iter().map(|hash| async move {
            crash::at("image.delete");
            let deleted = self.blobs.delete(&location(hash), Instant::now() + IMAGE_LIMIT).await;
            deleted.err().map(|error| {
                tracing::warn!(image = %hash, %error, "an unused image was not deleted");
                *hash
            })
        });
        let left = futures::stream::iter(deletions).buffer_unordered(PARALLEL_WRITES);
        self.wait(left.filter_map(|left| async move { left }).collect())
    }

    /// Deletes every image that is not in `used`; returns how many were, and how many could not be.
    pub(crate) fn delete_unused(&self, used: &HashSet<ImageHash>) -> Result<(usize, usize), GalleryError> {
        let listed = self.blobs.list("", Instant::now() + LISTING_LIMIT);
        let unused: Vec<ImageHash> = self.wait(async {
            let mut unused = Vec::new();
            let mut listed = pin!(listed);
            while let Some(entry) = listed.next().await {
                let entry = entry.map_err(|error| GalleryError::from_blob("listing the images", error))?;
                let name = entry.key.rsplit('/').next().unwrap_or_default();
                unused.extend(ImageHash::from_hex(name).filter(|hash| !used.contains(hash)));
            }
            Ok::<_, GalleryError>(unused)
        })?;
        let left = self.delete_all(&unused).len();
        Ok((unused.len() - left, left))
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            None => unreachable!("the runtime is taken in drop alone"),
        }
    }
}

impl Drop for ImageStore {
    fn drop(&mut self) {
        // A runtime may not be dropped in the ordinary way by an async task that happens to hold the last handle.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Two levels, so that no folder grows beyond what tools can list.
fn location(hash: &ImageHash) -> String {
    let hex = hash.to_string();
    format!("{}/{hex}", &hex[..2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, ImageStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        (folder, store)
    }

    fn put(store: &ImageStore, bytes: &'static [u8]) -> ImageHash {
        let hash = ImageHash::of(bytes);
        store.put_all(vec![(hash, Bytes::from_static(bytes))]).remove(0).unwrap();
        hash
    }

    #[test]
    fn bytes_come_back_identical() {
        let (_folder, store) = store();
        let hash = put(&store, b"picture");
        assert!(store.exists(&hash));
        assert_eq!(store.get(&hash).unwrap(), Bytes::from_static(b"picture"));
    }

    #[test]
    fn a_changed_or_missing_file_is_data_loss() {
        let (folder, store) = store();
        let hash = put(&store, b"picture");
        let hex = hash.to_string();
        let path = folder.path().join(&hex[..2]).join(&hex);
        std::fs::write(&path, b"pictur3").unwrap();
        assert!(matches!(store.get(&hash), Err(GalleryError::DataLoss { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(store.get(&hash), Err(GalleryError::DataLoss { .. })));
    }

    #[test]
    fn unused_images_and_unfinished_files_are_collected() {
        let (folder, store) = store();
        let (kept, unused) = (put(&store, b"kept"), put(&store, b"unused"));
        let unfinished = folder.path().join("ab");
        std::fs::create_dir_all(&unfinished).unwrap();
        std::fs::write(unfinished.join("abcd#1"), b"half").unwrap();
        drop(store);
        let store = ImageStore::open(folder.path()).unwrap();
        assert_eq!(store.delete_unused(&HashSet::from([kept])).unwrap(), (1, 0));
        assert!(store.exists(&kept) && !store.exists(&unused));
        assert!(!unfinished.join("abcd#1").exists());
    }

    #[test]
    fn a_place_is_one_gallerys_alone() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::in_folder(folder.path(), 1000).unwrap();
        let first = ImageStore::open_elsewhere(blobs.clone(), "one").unwrap();
        let hash = put(&first, b"picture");
        ImageStore::open_elsewhere(blobs.clone(), "one").unwrap();
        let refused = ImageStore::open_elsewhere(blobs, "two");
        assert!(matches!(refused, Err(OpenError::ImagesInUse { .. })));
        // Its name is no image's.
        assert_eq!(first.delete_unused(&HashSet::from([hash])).unwrap(), (0, 0));
    }

    #[test]
    fn one_place_under_two_names_is_seen_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let one = ImageStore::open(folder.path()).unwrap();
        let name = folder.path().join(".");
        let same = ImageStore::open_elsewhere(Blobs::in_folder(&name, 1000).unwrap(), "me").unwrap();
        let (_other, other) = store();
        assert!(one.is_same_place(&same).unwrap());
        assert!(!one.is_same_place(&other).unwrap());
    }

    #[test]
    fn images_that_are_moved_are_whole() {
        let ((_a, from), (_b, to)) = (store(), store());
        let hashes = [put(&from, b"one"), put(&from, b"two")];
        put(&to, b"two");
        to.copy_from(&from, hashes).unwrap();
        assert_eq!(hashes.map(|hash| to.get(&hash).unwrap()), [&b"one"[..], b"two"]);
    }
}
