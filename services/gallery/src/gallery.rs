use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thicket_index::{CollectionIndex, IndexKind, SnapshotError};
use thicket_proto::v1;
use tokio::sync::watch;

use crate::collection::Collection;
use crate::config::Config;
use crate::crash;
use crate::error::{GalleryError, OpenError, count_storage_fault};
use crate::follower::Lag;
use crate::images::ImageStore;
use crate::indexer::{self, Nudge};
use crate::moving;
use crate::queue::WriteQueue;
use crate::record::{CollectionRecord, ImageHash};
use crate::source::{Position, Source};
use crate::store::Store;
use crate::writer::Writer;

/// How long a read waits for a transaction that it wants to know of.
const REACH_TIME: Duration = Duration::from_secs(1);

/// The collections of one data folder.
///
/// One thread writes: it takes what is queued, stores images, commits one transaction and only then answers. Readers
/// look at the collections in memory. All methods but the `async` ones block and belong on a thread of their own.
#[derive(Debug)]
pub(crate) struct Gallery {
    shared: Arc<Shared>,
    writes: WriteQueue,
    writer: Mutex<Option<JoinHandle<()>>>,
    indexer: Mutex<Option<JoinHandle<()>>>,
    /// Set where this gallery only follows another one.
    lag: Option<Arc<Lag>>,
}

/// What the writer and the readers have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    /// By name. The writer alone changes the map.
    pub(crate) collections: RwLock<BTreeMap<String, Arc<Collection>>>,
    pub(crate) images: ImageStore,
    pub(crate) snapshots: PathBuf,
    /// Wakes the thread that keeps the structures of approximate indexes up.
    pub(crate) indexing: Nudge,
    /// The store as replicas are told of it, and how far this gallery is.
    pub(crate) source: Arc<Source>,
}

impl Gallery {
    /// Opens or creates a data folder: reads the store, collects images that nothing uses, loads or rebuilds the
    /// indexes, starts the writer.
    pub(crate) fn open(config: &Config) -> Result<Self, OpenError> {
        let opened = Self::open_folder(config);
        if let Some(reason) = opened.as_ref().err().and_then(OpenError::reason) {
            count_storage_fault(reason);
        }
        opened
    }

    fn open_folder(config: &Config) -> Result<Self, OpenError> {
        let images = config.data.join("images");
        let failed = |cause: std::io::Error| OpenError::folder(&config.data, cause);
        std::fs::create_dir_all(&config.data).map_err(failed)?;
        // The store's lock keeps a second gallery out before anything is cleaned up.
        let mut store = Store::open(&config.data, config.cache_bytes)?;
        let unwritten =
            store.position().map_err(|cause| OpenError::folder(&config.data, cause))?.is_unwritten();
        // A replica asks its writer for what it lacks.
        if unwritten && config.follow.is_none() && has_images(&images).map_err(failed)? {
            let reason = "there are images of a store, but the store is empty; bring gallery.redb back from a copy, or move \
                the folder away";
            return Err(OpenError::folder(&config.data, reason));
        }
        let images = moving::open(&mut store, &images, config.image_store.as_ref())?;
        Self::open_with(config, store, images)
    }

    /// [`Self::open`] with the images elsewhere.
    pub(crate) fn open_with(
        config: &Config,
        mut store: Store,
        images: ImageStore,
    ) -> Result<Self, OpenError> {
        if config.forget.is_some() {
            store.note_what_to_forget();
        }
        let unreadable = |cause: GalleryError| OpenError::folder(&config.data, cause);
        crash::at("open.store");
        collect(&mut store, &images).map_err(unreadable)?;
        crash::at("open.images");
        let snapshots = config.data.join("snapshots");
        std::fs::create_dir_all(&snapshots).map_err(|cause| OpenError::folder(&snapshots, cause))?;
        let shared = Arc::new(Shared {
            collections: RwLock::default(),
            images,
            snapshots,
            indexing: Nudge::default(),
            source: store.source(),
        });

        let lag = config.follow.as_ref().map(|writer| Arc::new(Lag::new(writer.to_string())));
        let (writes, queue) = WriteQueue::new(config.queue_limit, config.upsert_bytes);
        let writes = writes.of_replica(lag.as_ref().map(|lag| lag.writer().to_owned()));
        let mut writer = Writer::new(shared.clone(), store, queue, config.batch_limit, config.compact_after)
            .map_err(|cause| OpenError::folder(&config.data, cause))?;
        writer.load_all().map_err(unreadable)?;
        crash::at("open.loaded");
        writer.plan_compaction().map_err(unreadable)?;
        writer.remove_stray_snapshots();
        let indexer =
            indexer::start(shared.clone()).map_err(|cause| OpenError::folder(&config.data, cause))?;
        shared.indexing.wake();
        let thread = std::thread::Builder::new()
            .name("gallery-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|cause| {
                shared.indexing.stop();
                OpenError::folder(&config.data, cause)
            })?;
        Ok(Self { shared, writes, writer: Mutex::new(Some(thread)), indexer: Mutex::new(Some(indexer)), lag })
    }

    /// Refuses new writes, finishes the queued ones, saves snapshots, and gives the data folder free. Blocks.
    pub(crate) fn close(&self) {
        self.writes.close();
        self.shared.indexing.stop();
        if let Some(indexer) = self.indexer.lock().take()
            && indexer.join().is_err()
        {
            tracing::error!("the indexer thread panicked");
        }
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the writer thread panicked");
        }
        // The folder is free once nobody reads the store.
        self.shared.source.give_up();
    }

    /// Address of the gallery that this one follows; `None` where it takes writes itself.
    pub(crate) fn writer(&self) -> Option<&str> {
        self.lag.as_ref().map(|lag| lag.writer())
    }

    /// How far this gallery is behind the one it follows.
    pub(crate) fn lag(&self) -> Option<Arc<Lag>> {
        self.lag.clone()
    }

    /// The store as replicas are told of it.
    pub(crate) fn source(&self) -> Arc<Source> {
        self.shared.source.clone()
    }

    /// The last transaction that reads know of.
    pub(crate) fn position(&self) -> Position {
        self.shared.source.position()
    }

    /// Follows it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Position> {
        self.shared.source.subscribe()
    }

    /// Waits for a transaction to be known to reads, for a while; 0 is known to all.
    pub(crate) async fn reached(&self, transaction: u64) -> Result<(), GalleryError> {
        let mut at = self.subscribe();
        let known = at.wait_for(|at| at.transaction >= transaction);
        match tokio::time::timeout(REACH_TIME, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(GalleryError::Stopping),
            Err(_) => Err(GalleryError::Behind { wanted: transaction, at: self.position().transaction }),
        }
    }

    /// Names of the collections, by number.
    pub(crate) fn numbers(&self) -> HashMap<u64, String> {
        let collections = self.shared.collections.read();
        collections.values().map(|collection| (collection.number, collection.name.clone())).collect()
    }

    /// Which of some images are not here. Blocks.
    pub(crate) fn missing_images(&self, mut hashes: Vec<ImageHash>) -> Vec<ImageHash> {
        hashes.retain(|hash| !self.shared.images.exists(hash));
        hashes
    }

    /// The way in for writes.
    pub(crate) fn writes(&self) -> &WriteQueue {
        &self.writes
    }

    /// The collection of that name.
    pub(crate) fn collection(&self, name: &str) -> Result<Arc<Collection>, GalleryError> {
        let collections = self.shared.collections.read();
        collections
            .get(name)
            .cloned()
            .ok_or_else(|| GalleryError::UnknownCollection { name: name.to_owned() })
    }

    /// All collections, by name.
    pub(crate) fn list(&self) -> Vec<v1::Collection> {
        self.shared.collections.read().values().map(|collection| collection.describe()).collect()
    }

    /// The bytes of an image.
    pub(crate) fn read_image(&self, hash: &ImageHash) -> Result<Bytes, GalleryError> {
        self.shared.images.get(hash)
    }
}

impl Drop for Gallery {
    fn drop(&mut self) {
        // The writer ends with its queue; the indexer waits for a word.
        self.shared.indexing.stop();
    }
}

/// Deletes images that no item uses: in a folder of our own all of them, elsewhere those that the store knows of. What else
/// may be there, such as an image whose item a crash kept from being stored, the next compaction finds.
fn collect(store: &mut Store, images: &ImageStore) -> Result<(), GalleryError> {
    let collected = if images.is_own_folder() {
        let (collected, left) = images.delete_unused(&store.used_images()?)?;
        if left == 0 {
            let doomed = store.doomed_images()?;
            store.forget_doomed(&doomed)?;
        }
        collected
    } else {
        let doomed = store.doomed_images()?;
        // One may have been stored anew since.
        let unused = store.unused_of(doomed.iter().copied())?;
        let left = images.delete_all(&unused);
        let done: Vec<ImageHash> = doomed.into_iter().filter(|hash| !left.contains(hash)).collect();
        store.forget_doomed(&done)?;
        done.len()
    };
    if collected > 0 {
        tracing::info!(images = collected, "deleted images that no item uses");
    }
    Ok(())
}

/// Whether a folder of images has any.
fn has_images(folder: &Path) -> std::io::Result<bool> {
    let levels = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        levels => levels?,
    };
    for level in levels {
        let level = level?.path();
        if level.is_dir() && std::fs::read_dir(level)?.next().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Builds the view of one collection from the store, its index from the snapshot where that is sound and current.
///
/// The second value tells whether the snapshot served.
pub(crate) fn load(
    store: &mut Store,
    name: String,
    record: &CollectionRecord,
    snapshot: &Path,
) -> Result<(Collection, bool), GalleryError> {
    let items = store.items(record.number)?;
    let kind = IndexKind::from(record.index);
    let index = match CollectionIndex::load(snapshot, record.dimension, kind, &record.version) {
        Ok(index)
            if index.len() == items.len() && items.iter().all(|(sequence, _)| index.contains(*sequence)) =>
        {
            Some(index)
        }
        Ok(_) => {
            tracing::warn!(
                collection = name,
                "the snapshot holds other items than the store, rebuilding the index"
            );
            None
        }
        Err(SnapshotError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            tracing::info!(collection = name, items = items.len(), "no snapshot, building the index");
            None
        }
        Err(error @ SnapshotError::Stale { .. }) => {
            tracing::info!(collection = name, %error, "rebuilding the index");
            None
        }
        Err(error) => {
            tracing::warn!(collection = name, %error, "rebuilding the index");
            count_storage_fault("snapshot_damaged");
            None
        }
    };
    if let Some(index) = index {
        return Ok((Collection::new(name, record, items, index), true));
    }
    let failed = |cause| GalleryError::internal("rebuilding the index", cause);
    let mut index = CollectionIndex::new(record.dimension, kind).map_err(failed)?;
    store.vectors(record.number, |sequences, values| index.add(sequences, values).map_err(failed))?;
    if index.len() != items.len() {
        let reason = format!("the store has {} vectors for {} items", index.len(), items.len());
        return Err(GalleryError::internal("rebuilding the index", reason));
    }
    Ok((Collection::new(name, record, items, index), false))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::stream::{self, BoxStream, StreamExt};
    use object_store::memory::InMemory;
    use object_store::path::Path as ObjectPath;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
    };

    use thicket_blobs::Blobs;
    use thicket_engine::Similarity;

    use super::*;
    use crate::record::{ImageFormat, ImageRef, ItemRecord};
    use crate::write::Put;

    /// An object store on a disk that can be full.
    #[derive(Debug, Default)]
    struct FillableStore {
        inner: InMemory,
        full: AtomicBool,
        /// Nothing is deleted.
        sticky: AtomicBool,
    }

    impl fmt::Display for FillableStore {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("FillableStore")
        }
    }

    #[tonic::async_trait]
    impl ObjectStore for FillableStore {
        async fn put_opts(
            &self,
            at: &ObjectPath,
            bytes: PutPayload,
            how: PutOptions,
        ) -> StoreResult<PutResult> {
            if self.full.load(Ordering::SeqCst) {
                let source = Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
                return Err(object_store::Error::Generic { store: "fillable", source });
            }
            self.inner.put_opts(at, bytes, how).await
        }

        async fn put_multipart_opts(
            &self,
            at: &ObjectPath,
            how: PutMultipartOptions,
        ) -> StoreResult<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(at, how).await
        }

        async fn get_opts(&self, at: &ObjectPath, how: GetOptions) -> StoreResult<GetResult> {
            self.inner.get_opts(at, how).await
        }

        fn delete_stream(
            &self,
            at: BoxStream<'static, StoreResult<ObjectPath>>,
        ) -> BoxStream<'static, StoreResult<ObjectPath>> {
            if self.sticky.load(Ordering::SeqCst) {
                let source = Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                return stream::once(async { Err(object_store::Error::Generic { store: "sticky", source }) })
                    .boxed();
            }
            self.inner.delete_stream(at)
        }

        fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
            self.inner.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, how: CopyOptions) -> StoreResult<()> {
            self.inner.copy_opts(from, to, how).await
        }
    }

    async fn put(
        gallery: &Gallery,
        id: &str,
        image: Option<&'static [u8]>,
    ) -> Result<v1::Item, GalleryError> {
        let collection = gallery.collection("lobby").unwrap();
        let image = image.map(|bytes| (ImageHash::of(bytes), Bytes::from_static(bytes)));
        let reference = image.as_ref().map(|(hash, _)| ImageRef { hash: *hash, format: ImageFormat::Png });
        let put = Put {
            collection: collection.name.clone(),
            number: collection.number,
            vector: vec![1.0, 0.0],
            item: ItemRecord { id: id.to_owned(), image: reference, metadata: BTreeMap::new() },
        };
        let reserved = gallery.writes().reserve(100).await.unwrap();
        gallery.writes().put(put, image, reserved).await.unwrap().stored().await.map(|stored| stored.item)
    }

    fn open(config: &Config, images: &Arc<FillableStore>) -> Gallery {
        let store = Store::open(&config.data, config.cache_bytes).unwrap();
        Gallery::open_with(config, store, ImageStore::over(Blobs::over(images.clone(), 1 << 20)).unwrap())
            .unwrap()
    }

    #[tokio::test]
    async fn an_image_that_the_disk_refuses_fails_its_item_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_process(folder.path());
        let images = Arc::new(FillableStore::default());
        let gallery = std::thread::scope(|scope| scope.spawn(|| open(&config, &images)).join().unwrap());
        gallery
            .writes()
            .create("lobby".to_owned(), "m".to_owned(), 2, Similarity::Cosine, IndexKind::Exact)
            .await
            .unwrap();
        put(&gallery, "before", Some(b"one")).await.unwrap();
        images.full.store(true, Ordering::SeqCst);
        let (refused, without_image, known_image) = tokio::join!(
            put(&gallery, "refused", Some(b"two")),
            put(&gallery, "without", None),
            put(&gallery, "known", Some(b"one")),
        );
        assert!(matches!(refused, Err(GalleryError::DiskFull { .. })), "{refused:?}");
        without_image.unwrap();
        known_image.unwrap();
        let held = gallery.collection("lobby").unwrap();
        assert!(matches!(held.item("refused"), Err(GalleryError::UnknownItem { .. })));
        images.full.store(false, Ordering::SeqCst);
        put(&gallery, "refused", Some(b"two")).await.unwrap();
        assert_eq!(held.len(), 4);
        tokio::task::spawn_blocking(move || gallery.close()).await.unwrap();
    }

    #[tokio::test]
    async fn an_image_that_a_crash_kept_from_being_deleted_goes_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_process(folder.path());
        let images = Arc::new(FillableStore::default());
        let open = || std::thread::scope(|scope| scope.spawn(|| open(&config, &images)).join().unwrap());
        let gallery = open();
        gallery
            .writes()
            .create("lobby".to_owned(), "m".to_owned(), 2, Similarity::Cosine, IndexKind::Exact)
            .await
            .unwrap();
        put(&gallery, "a", Some(b"one")).await.unwrap();
        put(&gallery, "b", Some(b"two")).await.unwrap();
        images.sticky.store(true, Ordering::SeqCst);
        let gone = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(gallery.writes().delete("lobby".to_owned(), gone).await.unwrap().items, 2);
        // One of them is stored anew meanwhile.
        put(&gallery, "c", Some(b"two")).await.unwrap();
        tokio::task::spawn_blocking(move || gallery.close()).await.unwrap();
        let stored = || images.inner.list(None).count();
        assert_eq!(stored().await, 2);
        images.sticky.store(false, Ordering::SeqCst);
        let gallery = open();
        assert_eq!(stored().await, 1);
        let kept = std::thread::scope(|scope| {
            scope.spawn(|| gallery.read_image(&ImageHash::of(b"two"))).join().unwrap()
        });
        assert_eq!(kept.unwrap(), &b"two"[..]);
        tokio::task::spawn_blocking(move || gallery.close()).await.unwrap();
    }

    #[tokio::test]
    async fn a_write_for_a_collection_that_was_created_anew_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_process(folder.path());
        let images = Arc::new(FillableStore::default());
        let gallery = std::thread::scope(|scope| scope.spawn(|| open(&config, &images)).join().unwrap());
        gallery
            .writes()
            .create("lobby".to_owned(), "m".to_owned(), 2, Similarity::Cosine, IndexKind::Exact)
            .await
            .unwrap();
        let old = gallery.collection("lobby").unwrap();
        gallery.writes().drop_collection("lobby".to_owned(), None).await.unwrap();
        gallery
            .writes()
            .create("lobby".to_owned(), "m".to_owned(), 3, Similarity::Cosine, IndexKind::Exact)
            .await
            .unwrap();
        let item = ItemRecord { id: "a".to_owned(), image: None, metadata: BTreeMap::new() };
        let put = Put { collection: "lobby".to_owned(), number: old.number, vector: vec![1.0, 0.0], item };
        let reserved = gallery.writes().reserve(1).await.unwrap();
        let outcome = gallery.writes().put(put, None, reserved).await.unwrap().stored().await;
        assert!(matches!(outcome, Err(GalleryError::UnknownCollection { .. })), "{outcome:?}");
        gallery
            .writes()
            .create("attic".to_owned(), "m".to_owned(), 2, Similarity::Cosine, IndexKind::Exact)
            .await
            .unwrap();
        tokio::task::spawn_blocking(move || gallery.close()).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_gallery_refuses_writes() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_process(folder.path());
        let images = Arc::new(FillableStore::default());
        let gallery = std::thread::scope(|scope| scope.spawn(|| open(&config, &images)).join().unwrap());
        assert!(gallery.writes().is_open());
        gallery.close();
        assert!(!gallery.writes().is_open());
        let refused = gallery
            .writes()
            .create("lobby".to_owned(), "m".to_owned(), 2, Similarity::Cosine, IndexKind::Exact)
            .await;
        assert!(matches!(refused, Err(GalleryError::Stopping)));
    }
}
