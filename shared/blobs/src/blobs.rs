use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::error::BlobError;

/// Most bytes of an object's name.
pub const MAX_KEY_BYTES: usize = 900;

/// Objects by name. Clones are handles of the same place.
#[derive(Debug, Clone)]
pub struct Blobs {
    pub(crate) store: Arc<dyn ObjectStore>,
    place: Arc<Place>,
    url: Arc<str>,
    max_bytes: u64,
}

/// Where objects are.
#[derive(Debug)]
pub(crate) enum Place {
    /// A folder, whose directory entries have to be synced after a deletion.
    Folder(PathBuf),
    /// A server, which sees to that itself.
    Server,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the clock of the store.
    pub modified: SystemTime,
}

impl Blobs {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, place: Place, url: &str, max_bytes: u64) -> Self {
        Self { store, place: Arc::new(place), url: url.into(), max_bytes }
    }

    /// Objects of no more than `max_bytes` in a store of any kind, whose writes must be durable when they return.
    pub fn over(store: Arc<dyn ObjectStore>, max_bytes: u64) -> Self {
        let url = store.to_string();
        Self::new(store, Place::Server, &url, max_bytes)
    }

    /// The URL that it was opened with; it holds no secret.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Writes an object in place of any other of that name. It is durable when this returns, and never seen in part.
    ///
    /// # Errors
    /// [`BlobError`]; after [`BlobError::TimedOut`] and [`BlobError::Unavailable`] it may have been written nevertheless.
    pub async fn put(&self, key: &str, bytes: Bytes, until: Instant) -> Result<(), BlobError> {
        const OPERATION: &str = "writing";
        let location = self.writable(key, &bytes)?;
        self.in_time(OPERATION, key, until, self.store.put(&location, bytes.into())).await.map(drop)
    }

    /// Writes an object unless there is one of that name; of several callers at most one is told `true`.
    ///
    /// A server is asked again after a failure of the network, so `false` may mean that this very call wrote it: compare the
    /// content where that matters.
    ///
    /// # Errors
    /// [`BlobError`], as [`Self::put`].
    pub async fn put_if_absent(&self, key: &str, bytes: Bytes, until: Instant) -> Result<bool, BlobError> {
        const OPERATION: &str = "writing";
        let location = self.writable(key, &bytes)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let write = async {
            match self.store.put_opts(&location, bytes.into(), options).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(false)
                }
                Err(cause) => Err(cause),
            }
        };
        self.in_time(OPERATION, key, until, write).await
    }

    /// The bytes of an object.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::TooLarge`] before anything is read, and the others.
    pub async fn get(&self, key: &str, until: Instant) -> Result<Bytes, BlobError> {
        const OPERATION: &str = "reading";
        let location = location(key)?;
        let found = self.in_time(OPERATION, key, until, self.store.get(&location)).await?;
        if found.meta.size > self.max_bytes {
            return Err(BlobError::TooLarge {
                key: key.to_owned(),
                bytes: found.meta.size,
                limit: self.max_bytes,
            });
        }
        self.in_time(OPERATION, key, until, found.bytes()).await
    }

    /// True when there is an object of that name.
    ///
    /// # Errors
    /// [`BlobError`] where that cannot be told.
    pub async fn exists(&self, key: &str, until: Instant) -> Result<bool, BlobError> {
        let location = location(key)?;
        match self.in_time("looking for", key, until, self.store.head(&location)).await {
            Ok(_) => Ok(true),
            Err(BlobError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object, durably; one that is not there is no error.
    ///
    /// # Errors
    /// [`BlobError`]; then it may be there or not.
    pub async fn delete(&self, key: &str, until: Instant) -> Result<(), BlobError> {
        const OPERATION: &str = "deleting";
        let location = location(key)?;
        match self.in_time(OPERATION, key, until, self.store.delete(&location)).await {
            Ok(()) => {}
            Err(BlobError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let Place::Folder(folder) = &*self.place else { return Ok(()) };
        let level = folder.join(key).parent().unwrap_or(folder).to_owned();
        let failed = |reason: String| BlobError::Failed { operation: OPERATION, key: key.to_owned(), reason };
        let synced = tokio::task::spawn_blocking(move || sync_folder(&level)).await;
        synced.map_err(|cause| failed(cause.to_string()))?.map_err(|cause| failed(cause.to_string()))
    }

    /// The objects whose names start with the whole segments of `prefix` (all where it is empty), in any order. Nothing is
    /// asked for before the stream is polled.
    ///
    /// # Errors
    /// Each item may be a [`BlobError`], after which the stream ends.
    pub fn list(
        &self,
        prefix: &str,
        until: Instant,
    ) -> impl Stream<Item = Result<Entry, BlobError>> + Send + use<> {
        let name = prefix.to_owned();
        let prefix = match prefix {
            "" => Ok(None),
            prefix => ObjectPath::parse(prefix).map(Some),
        };
        let listed: BoxStream<'static, object_store::Result<ObjectMeta>> = match prefix {
            Ok(prefix) => self.store.list(prefix.as_ref()),
            Err(cause) => futures::stream::once(async { Err(cause.into()) }).boxed(),
        };
        let blobs = self.clone();
        futures::stream::unfold(Some((blobs, listed, name)), move |state| async move {
            let (blobs, mut listed, name) = state?;
            let next = async { listed.next().await.transpose() };
            match blobs.in_time("listing", &name, until, next).await {
                Ok(None) => None,
                Ok(Some(found)) => Some((Ok(entry(&found)), Some((blobs, listed, name)))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Removes what a crash left half written in a folder and what is older than `age`: a writer may still be at the rest.
    /// Returns how many files went; on a server there is nothing to do.
    ///
    /// # Errors
    /// [`BlobError::Failed`].
    pub async fn remove_unfinished(&self, age: Duration) -> Result<usize, BlobError> {
        let Place::Folder(folder) = &*self.place else { return Ok(0) };
        let folder = folder.clone();
        let failed = |reason: String| BlobError::Failed {
            operation: "removing unfinished files of",
            key: self.url.to_string(),
            reason,
        };
        let removed = tokio::task::spawn_blocking(move || remove_unfinished(&folder, age)).await;
        removed.map_err(|cause| failed(cause.to_string()))?.map_err(|cause| failed(cause.to_string()))
    }

    fn writable(&self, key: &str, bytes: &Bytes) -> Result<ObjectPath, BlobError> {
        let size = bytes.len() as u64;
        if size > self.max_bytes {
            return Err(BlobError::TooLarge { key: key.to_owned(), bytes: size, limit: self.max_bytes });
        }
        location(key)
    }

    pub(crate) async fn in_time<T>(
        &self,
        operation: &'static str,
        key: &str,
        until: Instant,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BlobError> {
        let remote = matches!(*self.place, Place::Server);
        match tokio::time::timeout_at(until.into(), work).await {
            Ok(done) => done.map_err(|cause| BlobError::sort(operation, key, remote, &cause)),
            Err(_) => Err(BlobError::TimedOut { operation, key: key.to_owned() }),
        }
    }
}

/// Checks a name. `#` is how a folder marks what is not written to its end.
pub(crate) fn location(key: &str) -> Result<ObjectPath, BlobError> {
    let refused = |reason: String| BlobError::Key { key: key.chars().take(80).collect(), reason };
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(refused(format!("1 to {MAX_KEY_BYTES} bytes, got {}", key.len())));
    }
    if key.contains('#') || key.starts_with('/') || key.ends_with('/') {
        return Err(refused("it has a #, or a slash at an end".to_owned()));
    }
    ObjectPath::parse(key).map_err(|cause| refused(cause.to_string()))
}

fn entry(found: &ObjectMeta) -> Entry {
    Entry { key: found.location.to_string(), bytes: found.size, modified: found.last_modified.into() }
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::File::open(folder) {
        Ok(folder) => folder.sync_all(),
        // Somebody removed the folder with everything in it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove_unfinished(folder: &Path, age: Duration) -> std::io::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            removed += remove_unfinished(&path, age)?;
            continue;
        }
        if !entry.file_name().to_string_lossy().contains('#') {
            continue;
        }
        let old = entry.metadata()?.modified()?.elapsed().is_ok_and(|elapsed| elapsed >= age);
        if old || age.is_zero() {
            std::fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}
