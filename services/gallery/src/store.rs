pub(crate) mod lists;

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable};
use uuid::Uuid;

use crate::crash;
use crate::error::{GalleryError, OpenError};
use crate::record::{CollectionRecord, ImageHash, ItemRecord};
use crate::source::{Position, Source};
use crate::tables::{
    COLLECTIONS, IMAGES, ITEMS, Images, LAST, META, TRANSACTION, UNCOMPACTED_SINCE, VECTORS, copy_all,
    is_used, parse, prepare, span, transact,
};
use crate::write::{Done, Write};

/// Bytes set aside on disk. A deletion writes before it frees, so on a full disk it needs some room of its own.
const RESERVE_BYTES: usize = 8 << 20;
/// How long a database that was given up may take to let its file go, while a replica is being told of it.
const LET_GO: Duration = Duration::from_secs(2);
/// Version of the layout of the tables.
pub(crate) const FORMAT: u64 = 1;

/// The truth: an embedded transactional store, owned by one thread.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// A file of [`RESERVE_BYTES`] that is given up when a deletion meets a full disk.
    reserve: PathBuf,
    /// True while there is no room for it, which was said.
    lacks_reserve: bool,
    cache_bytes: usize,
    /// `None` after an I/O error until the file could be opened again.
    database: Option<Arc<Database>>,
    /// True where answers about images are to be forgotten with their last item.
    forgets: bool,
    /// Where replicas are told of it.
    source: Arc<Source>,
}

/// What a transaction did.
#[derive(Debug)]
pub(crate) struct Applied {
    /// One result a write, in order: what it did, and the images that it took the last item from, sorted.
    pub(crate) results: Vec<Result<(Done, Vec<ImageHash>), GalleryError>>,
    /// True where bytes were deleted or replaced.
    pub(crate) freed: bool,
    /// Images that no item uses any more.
    pub(crate) unused: Vec<ImageHash>,
    /// Number and name of the transaction; the name is the version of every collection that it changed.
    pub(crate) position: Position,
}

impl Store {
    /// Opens or creates the store in `folder`.
    pub(crate) fn open(folder: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        let path = folder.join("gallery.redb");
        if !path.exists() {
            create_whole(&path, cache_bytes).map_err(|cause| match cause {
                redb::Error::DatabaseAlreadyOpen => OpenError::InUse { folder: folder.to_owned() },
                cause => OpenError::folder(folder, cause),
            })?;
        }
        // The store's library does not expect every damage.
        let opened = catch_unwind(|| open_checked(&path, cache_bytes))
            .map_err(|_| OpenError::folder(folder, "gallery.redb is damaged"))?;
        let database = opened.map_err(|cause| match cause {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { folder: folder.to_owned() },
            cause => OpenError::folder(folder, format_args!("gallery.redb: {cause}")),
        })?;
        thicket_compaction::remove_unfinished(&path)
            .and_then(|()| remove(&beginning(&path)))
            .map_err(|cause| OpenError::folder(folder, cause))?;
        let found = prepare(&database).map_err(|cause| OpenError::folder(folder, cause))?;
        if found != FORMAT {
            return Err(OpenError::Format { folder: folder.to_owned(), expected: FORMAT, found });
        }
        let (database, source) = (Arc::new(database), Arc::new(Source::default()));
        source.set(&database);
        let reserve = folder.join("reserve");
        let mut store = Self {
            path,
            reserve,
            lacks_reserve: false,
            cache_bytes,
            database: Some(database),
            forgets: false,
            source,
        };
        store.set_reserve_aside();
        let position = store.position().map_err(|cause| OpenError::folder(folder, cause))?;
        store.source.announce(position);
        Ok(store)
    }

    /// From now on, notes the images whose last item goes, so that answers about them are forgotten.
    pub(crate) fn note_what_to_forget(&mut self) {
        self.forgets = true;
    }

    /// Makes sure that the reserve is there; on a disk that is full already there is none until there is room.
    pub(crate) fn set_reserve_aside(&mut self) {
        if std::fs::metadata(&self.reserve).is_ok_and(|file| file.len() == RESERVE_BYTES as u64) {
            return;
        }
        match std::fs::write(&self.reserve, vec![0; RESERVE_BYTES]) {
            Ok(()) => self.lacks_reserve = false,
            Err(error) => {
                if !std::mem::replace(&mut self.lacks_reserve, true) {
                    tracing::warn!(%error, "no disk space could be set aside for deletions");
                }
                self.give_reserve_up();
            }
        }
    }

    /// Frees the reserve.
    pub(crate) fn give_reserve_up(&self) {
        match std::fs::remove_file(&self.reserve) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the disk space set aside could not be freed");
            }
            _ => {}
        }
    }

    /// Where replicas are told of the store.
    pub(crate) fn source(&self) -> Arc<Source> {
        self.source.clone()
    }

    /// The last transaction.
    pub(crate) fn position(&mut self) -> Result<Position, GalleryError> {
        self.read(|database| {
            let transaction = database.begin_read()?;
            let number = transaction.open_table(META)?.get(TRANSACTION)?.map_or(0, |number| number.value());
            let version = transaction.open_table(LAST)?.get("")?.map(|version| version.value());
            Ok(Position { transaction: number, version: version.unwrap_or_default() })
        })
    }

    /// All collections by name.
    pub(crate) fn collections(&mut self) -> Result<Vec<(String, CollectionRecord)>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(COLLECTIONS)?;
            let mut collections = Vec::new();
            for entry in table.iter()? {
                let (name, record) = entry?;
                collections.push((name.value().to_owned(), parse(record.value())?));
            }
            Ok(collections)
        })
    }

    /// All items of a collection, by sequence number ascending.
    pub(crate) fn items(&mut self, collection: u64) -> Result<Vec<(u64, ItemRecord)>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(ITEMS)?;
            let mut items = Vec::new();
            for entry in table.range(span(collection))? {
                let (key, record) = entry?;
                items.push((key.value().1, parse(record.value())?));
            }
            Ok(items)
        })
    }

    /// Hands every vector of a collection to `take` in blocks: sequence numbers, then values, row-major.
    pub(crate) fn vectors(
        &mut self,
        collection: u64,
        mut take: impl FnMut(&[u64], &[f32]) -> Result<(), GalleryError>,
    ) -> Result<(), GalleryError> {
        const ROWS_PER_BLOCK: usize = 1024;
        let mut taken = Ok(());
        self.read(|database| {
            let table = database.begin_read()?.open_table(VECTORS)?;
            let (mut sequences, mut values) = (Vec::new(), Vec::new());
            for entry in table.range(span(collection))? {
                let (key, bytes) = entry?;
                sequences.push(key.value().1);
                values
                    .extend(bytes.value().as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
                if sequences.len() == ROWS_PER_BLOCK {
                    taken = take(&sequences, &values);
                    if taken.is_err() {
                        return Ok(());
                    }
                    sequences.clear();
                    values.clear();
                }
            }
            taken = take(&sequences, &values);
            Ok(())
        })?;
        taken
    }

    /// Every image that an item uses.
    pub(crate) fn used_images(&mut self) -> Result<HashSet<ImageHash>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(IMAGES)?;
            table.iter()?.map(|entry| Ok(ImageHash::from(entry?.0.value().0))).collect()
        })
    }

    /// Which of `hashes` no item uses.
    pub(crate) fn unused_of(
        &mut self,
        hashes: impl IntoIterator<Item = ImageHash>,
    ) -> Result<Vec<ImageHash>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(IMAGES)?;
            let mut unused = Vec::new();
            for hash in hashes {
                if !is_used(&table, &hash)? {
                    unused.push(hash);
                }
            }
            Ok(unused)
        })
    }

    /// Applies writes in order in one transaction, which is durable on return.
    ///
    /// A write that breaks a rule fails alone. `unused` of the result also names those of `touched` that no item uses:
    /// images that were written for puts that failed. Images that were `deleted` are doomed no longer.
    ///
    /// # Errors
    /// [`GalleryError::DiskFull`] or [`GalleryError::Internal`]; then nothing was changed.
    pub(crate) fn apply(
        &mut self,
        writes: &[Write],
        touched: &[ImageHash],
        deleted: &[ImageHash],
    ) -> Result<Applied, GalleryError> {
        let version = *Uuid::new_v4().as_bytes();
        let images = Images { touched, deleted, forgets: self.forgets };
        let database = self.database()?;
        let mut applied = None;
        match transact(&database, writes, images, version, &mut applied) {
            Ok(()) => {}
            Err(cause) => {
                let failure = GalleryError::from_write("writing the store", &cause);
                tracing::warn!(error = %cause, writes = writes.len(), "a transaction failed, opening the store again");
                // After an I/O error the database refuses everything until it is opened again. That also tells
                // whether the transaction was lost or had reached the disk after all.
                drop(database);
                self.give_up();
                let landed = self.read(|database| {
                    let table = database.begin_read()?.open_table(LAST)?;
                    Ok(table.get("")?.map(|last| last.value()) == Some(version))
                })?;
                if !landed {
                    return Err(failure);
                }
            }
        }
        applied.ok_or_else(|| GalleryError::internal("writing the store", "the transaction left no result"))
    }

    /// For how long bytes of what was deleted or replaced may have been in the file; `None` where there are none.
    pub(crate) fn uncompacted_for(&mut self) -> Result<Option<Duration>, GalleryError> {
        let since = self.read(|database| {
            let table = database.begin_read()?.open_table(META)?;
            Ok(table.get(UNCOMPACTED_SINCE)?.map(|since| since.value()))
        })?;
        Ok(since.map(|since| Duration::from_millis(unix_ms().saturating_sub(since))))
    }

    /// Makes a new file of what the store holds, in which nothing is left of what was deleted or replaced. Returns the
    /// size of the file in bytes, before and after.
    ///
    /// # Errors
    /// [`GalleryError::DiskFull`] or [`GalleryError::Internal`]; then nothing was changed.
    pub(crate) fn compact(&mut self) -> Result<(u64, u64), GalleryError> {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let (path, cache_bytes) = (self.path.clone(), self.cache_bytes);
        let before = size(&path);
        let create = |path: &Path| open_database(path, cache_bytes);
        let old = self.database()?;
        let compacted = thicket_compaction::compact(&old, &path, create, copy_all);
        crash::at("compact.renamed");
        match compacted {
            Ok(database) => {
                let database = Arc::new(database);
                self.source.set(&database);
                self.database = Some(database);
            }
            Err(cause) => {
                // After an I/O error it may refuse everything until it is opened again.
                drop(old);
                self.give_up();
                return Err(GalleryError::from_write("compacting the store", &cause));
            }
        }
        Ok((before, size(&path)))
    }

    pub(crate) fn database(&mut self) -> Result<Arc<Database>, GalleryError> {
        if let Some(database) = &self.database {
            return Ok(database.clone());
        }
        let patience = Instant::now() + LET_GO;
        let database = loop {
            match open_database(&self.path, self.cache_bytes) {
                // Whoever tells a replica of the old one lets it go before long.
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < patience => {
                    std::thread::sleep(LET_GO / 100);
                }
                Err(cause) => {
                    return Err(GalleryError::from_write(
                        "opening the store again",
                        &redb::Error::from(cause),
                    ));
                }
                Ok(database) => break Arc::new(database),
            }
        };
        self.source.set(&database);
        self.database = Some(database.clone());
        Ok(database)
    }

    /// Closes the database: after an I/O error it refuses everything until it is opened again.
    pub(crate) fn give_up(&mut self) {
        self.database = None;
        self.source.give_up();
    }

    fn read<T>(&mut self, read: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, GalleryError> {
        let database = self.database()?;
        read(&database).map_err(|cause| {
            drop(database);
            self.give_up();
            GalleryError::internal("reading the store", cause)
        })
    }
}

fn open_database(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes);
    crash::open(&builder, path)
}

/// Makes an empty store, whole or not at all: a file that a crash left half made would be taken for a damaged one.
fn create_whole(path: &Path, cache_bytes: usize) -> Result<(), redb::Error> {
    let beginning = beginning(path);
    let database = match open_database(&beginning, cache_bytes) {
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(redb::Error::DatabaseAlreadyOpen),
        // Left by a crash; nothing was ever in it.
        Err(_) => {
            remove(&beginning).map_err(redb::Error::Io)?;
            open_database(&beginning, cache_bytes)?
        }
        Ok(database) => database,
    };
    prepare(&database)?;
    drop(database);
    crash::at("store.created");
    // Unlike a rename, a link takes nobody's place who was faster.
    match std::fs::hard_link(&beginning, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => std::fs::rename(&beginning, path),
        _ => Ok(()),
    }
    .map_err(redb::Error::Io)?;
    let folder = path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all());
    folder.map_err(redb::Error::Io)
}

/// The file of a store that is being made.
fn beginning(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a store whose file may have been changed by something else than this program: every page is read and checked.
fn open_checked(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    crash::open(&builder, path)
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
