use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::{GalleryError, OpenError};
use crate::record::ImageHash;

/// Images written at once; a sync each, which disks do better together.
const PARALLEL_WRITES: usize = 8;

/// Image bytes by their hash.
///
/// The object store is asynchronous, the gallery's threads are not: calls wait on a runtime that this store owns, so
/// they must not be made from an async task.
#[derive(Debug)]
pub(crate) struct ImageStore {
    store: Arc<dyn ObjectStore>,
    /// Present until drop.
    runtime: Option<tokio::runtime::Runtime>,
}

impl ImageStore {
    /// Opens (creates) a folder of images whose writes are synced before they count.
    pub(crate) fn open(folder: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(folder).map_err(|cause| OpenError::folder(folder, cause))?;
        remove_unfinished(folder).map_err(|cause| OpenError::folder(folder, cause))?;
        let local = LocalFileSystem::new_with_prefix(folder)
            .map_err(|cause| OpenError::folder(folder, cause))?
            .with_fsync(true);
        Self::over(Arc::new(local)).map_err(|cause| OpenError::folder(folder, cause))
    }

    /// Stores images in `store`, whose writes must be durable when they return.
    pub(crate) fn over(store: Arc<dyn ObjectStore>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(PARALLEL_WRITES)
            .thread_name("gallery-images")
            .build()?;
        Ok(Self { store, runtime: Some(runtime) })
    }

    /// Writes images; returns one result an image, in order.
    pub(crate) fn put_all(&self, images: Vec<(ImageHash, Bytes)>) -> Vec<Result<(), GalleryError>> {
        let writes = images.into_iter().map(|(hash, bytes)| async move {
            let written = self.store.put(&location(&hash), bytes.into()).await;
            written.map(drop).map_err(|cause| GalleryError::from_write("writing the image", &cause))
        });
        self.wait(futures::stream::iter(writes).buffered(PARALLEL_WRITES).collect())
    }

    /// True when a file of that image exists with any content.
    pub(crate) fn exists(&self, hash: &ImageHash) -> bool {
        self.wait(self.store.head(&location(hash))).is_ok()
    }

    /// Reads an image and checks that the bytes are those that were stored.
    pub(crate) fn get(&self, hash: &ImageHash) -> Result<Bytes, GalleryError> {
        let lost = |reason| GalleryError::DataLoss { image: hash.to_string(), reason };
        let read = self.wait(async { self.store.get(&location(hash)).await?.bytes().await });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Err(lost("the file is missing")),
            Err(cause) => return Err(GalleryError::internal("reading the image", cause)),
        };
        if ImageHash::of(&bytes) != *hash {
            return Err(lost("the file has changed"));
        }
        Ok(bytes)
    }

    /// Deletes images; returns how many could not be. Each failure is logged, and the next compaction or start collects
    /// what is left.
    pub(crate) fn delete_all<'a>(&self, hashes: impl IntoIterator<Item = &'a ImageHash>) -> usize {
        let mut left = 0;
        for hash in hashes {
            match self.wait(self.store.delete(&location(hash))) {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(image = %hash, %error, "an unused image was not deleted");
                    left += 1;
                }
            }
        }
        left
    }

    /// Deletes every image that is not in `used`; returns how many were, and how many could not be.
    pub(crate) fn delete_unused(&self, used: &HashSet<ImageHash>) -> Result<(usize, usize), GalleryError> {
        let listed: Vec<_> = self.wait(self.store.list(None).collect());
        let mut unused = Vec::new();
        for object in listed {
            let object = object.map_err(|cause| GalleryError::internal("listing the images", cause))?;
            let hash = object.location.filename().and_then(ImageHash::from_hex);
            unused.extend(hash.filter(|hash| !used.contains(hash)));
        }
        let left = self.delete_all(&unused);
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
fn location(hash: &ImageHash) -> ObjectPath {
    let hex = hash.to_string();
    ObjectPath::from_iter([&hex[..2], &hex])
}

/// Removes what a crash left half written: the object store stages a file as `NAME#N` and does not list it.
fn remove_unfinished(folder: &Path) -> std::io::Result<()> {
    for level in std::fs::read_dir(folder)? {
        let level = level?;
        if !level.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(level.path())? {
            let file = file?;
            if file.file_name().to_string_lossy().contains('#') {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
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
}
