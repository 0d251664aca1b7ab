mod lists;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition, WriteTransaction,
};
use thicket_compaction::copy_table;
use uuid::Uuid;

use crate::error::{GalleryError, OpenError};
use crate::record::{CollectionRecord, ImageHash, ItemRecord, Version};
use crate::store::lists::{DOOMED, TO_FORGET, WORDS};
use crate::write::{Done, Put, Write};

/// Bytes set aside on disk. A deletion writes before it frees, so on a full disk it needs some room of its own.
const RESERVE_BYTES: usize = 8 << 20;
/// Version of the layout below.
const FORMAT: u64 = 1;

/// When something was deleted or replaced whose bytes may still be in the file, milliseconds since 1970-01-01 UTC: the
/// first such moment since the file was made.
const UNCOMPACTED_SINCE: &str = "uncompacted_since";

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Version of the last transaction, under the empty key.
const LAST: TableDefinition<&str, Version> = TableDefinition::new("last_transaction");
/// Name to [`CollectionRecord`] as JSON.
const COLLECTIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("collections");
/// (collection number, sequence number) to [`ItemRecord`] as JSON.
const ITEMS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("items");
/// (collection number, sequence number) to f32 values, little-endian.
const VECTORS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("vectors");
/// (collection number, caller's id) to sequence number.
const IDS: TableDefinition<(u64, &str), u64> = TableDefinition::new("ids");
/// (image hash, collection number) to the number of items that use it.
const IMAGES: TableDefinition<([u8; 32], u64), u64> = TableDefinition::new("images");

/// The truth: an embedded transactional store, owned by one thread.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// A file of [`RESERVE_BYTES`] that is given up when a deletion meets a full disk.
    reserve: PathBuf,
    cache_bytes: usize,
    /// `None` after an I/O error until the file could be opened again.
    database: Option<Database>,
    /// True where answers about images are to be forgotten with their last item.
    forgets: bool,
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
    /// Name of the transaction: the version of every collection that it changed.
    pub(crate) version: Version,
}

impl Store {
    /// Opens or creates the store in `folder`.
    pub(crate) fn open(folder: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        let path = folder.join("gallery.redb");
        let database = open_database(&path, cache_bytes).map_err(|cause| match cause {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { folder: folder.to_owned() },
            cause => OpenError::folder(folder, cause),
        })?;
        thicket_compaction::remove_unfinished(&path).map_err(|cause| OpenError::folder(folder, cause))?;
        let found = prepare(&database).map_err(|cause| OpenError::folder(folder, cause))?;
        if found != FORMAT {
            return Err(OpenError::Format { folder: folder.to_owned(), expected: FORMAT, found });
        }
        let store = Self {
            path,
            reserve: folder.join("reserve"),
            cache_bytes,
            database: Some(database),
            forgets: false,
        };
        store.set_reserve_aside();
        Ok(store)
    }

    /// From now on, notes the images whose last item goes, so that answers about them are forgotten.
    pub(crate) fn note_what_to_forget(&mut self) {
        self.forgets = true;
    }

    /// Makes sure that the reserve is there; on a disk that is full already there is none until there is room.
    pub(crate) fn set_reserve_aside(&self) {
        if std::fs::metadata(&self.reserve).is_ok_and(|file| file.len() == RESERVE_BYTES as u64) {
            return;
        }
        if let Err(error) = std::fs::write(&self.reserve, vec![0; RESERVE_BYTES]) {
            tracing::warn!(%error, "no disk space could be set aside for deletions");
            self.give_reserve_up();
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
    /// images that were written for puts that failed. Images that
    /// were `deleted` are doomed no longer.
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
        match transact(database, writes, images, version, &mut applied) {
            Ok(()) => {}
            Err(cause) => {
                let failure = GalleryError::from_write("writing the store", &cause);
                tracing::warn!(error = %cause, writes = writes.len(), "a transaction failed, opening the store again");
                // After an I/O error the database refuses everything until it is opened again. That also tells
                // whether the transaction was lost or had reached the disk after all.
                self.database = None;
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
        let compacted = thicket_compaction::compact(self.database()?, &path, create, copy_all);
        match compacted {
            Ok(database) => self.database = Some(database),
            Err(cause) => {
                // After an I/O error it may refuse everything until it is opened again.
                self.database = None;
                return Err(GalleryError::from_write("compacting the store", &cause));
            }
        }
        Ok((before, size(&path)))
    }

    fn database(&mut self) -> Result<&Database, GalleryError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(&self.path, self.cache_bytes).map_err(|cause| {
                GalleryError::from_write("opening the store again", &redb::Error::from(cause))
            })?,
        };
        Ok(self.database.insert(database))
    }

    fn read<T>(&mut self, read: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, GalleryError> {
        let database = self.database()?;
        read(database).map_err(|cause| {
            self.database = None;
            GalleryError::internal("reading the store", cause)
        })
    }
}

fn open_database(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(cache_bytes).create(path)
}

/// Copies every table, and of the small facts all but the one that a new file makes untrue.
fn copy_all(from: &ReadTransaction, to: &WriteTransaction) -> Result<(), redb::Error> {
    copy_table(from, to, META, |fact| fact != UNCOMPACTED_SINCE)?;
    copy_table(from, to, LAST, |_| true)?;
    copy_table(from, to, COLLECTIONS, |_| true)?;
    copy_table(from, to, ITEMS, |_| true)?;
    copy_table(from, to, VECTORS, |_| true)?;
    copy_table(from, to, IDS, |_| true)?;
    copy_table(from, to, IMAGES, |_| true)?;
    copy_table(from, to, DOOMED, |_| true)?;
    copy_table(from, to, TO_FORGET, |_| true)?;
    copy_table(from, to, WORDS, |_| true)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Creates the tables of an empty store; returns the format found.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let format = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("format")?.map(|format| format.value());
        match found {
            Some(format) => format,
            None => {
                meta.insert("format", FORMAT)?;
                FORMAT
            }
        }
    };
    if format == FORMAT {
        Tables::open(&transaction, false)?;
        transaction.open_table(LAST)?;
        transaction.open_table(WORDS)?;
    }
    transaction.commit()?;
    Ok(format)
}

/// What a transaction does to images beside its writes; see [`Store::apply`].
#[derive(Clone, Copy)]
struct Images<'a> {
    touched: &'a [ImageHash],
    deleted: &'a [ImageHash],
    forgets: bool,
}

fn transact(
    database: &Database,
    writes: &[Write],
    Images { touched, deleted, forgets }: Images<'_>,
    version: Version,
    applied: &mut Option<Applied>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // A crash must not cost a walk over all vectors at the next start.
    transaction.set_quick_repair(true);
    {
        let mut tables = Tables::open(&transaction, forgets)?;
        for hash in deleted {
            tables.doomed.remove(hash.bytes())?;
        }
        let mut results = Vec::with_capacity(writes.len());
        for write in writes {
            let result = tables.apply(write)?;
            let released = std::mem::take(&mut tables.released);
            tables.all_released.extend(&released);
            results.push(result.map(|done| (done, released)));
        }
        let freed = tables.freed;
        let unused = tables.finish(version, touched)?;
        let results = results
            .into_iter()
            .map(|result| {
                result.map(|(done, mut released)| {
                    // A later write of the batch may have taken an image up again.
                    released.retain(|hash| unused.contains(hash));
                    (done, released.into_iter().collect())
                })
            })
            .collect();
        transaction.open_table(LAST)?.insert("", version)?;
        *applied = Some(Applied { results, freed, unused: unused.into_iter().collect(), version });
    }
    transaction.commit()?;
    Ok(())
}

/// Outer: the store failed. Inner: the write broke a rule and changed nothing.
type Outcome<T> = Result<Result<T, GalleryError>, redb::Error>;

struct Tables<'t> {
    meta: Table<'t, &'static str, u64>,
    collections: Table<'t, &'static str, &'static [u8]>,
    items: Table<'t, (u64, u64), &'static [u8]>,
    vectors: Table<'t, (u64, u64), &'static [u8]>,
    ids: Table<'t, (u64, &'static str), u64>,
    images: Table<'t, ([u8; 32], u64), u64>,
    doomed: Table<'t, [u8; 32], ()>,
    to_forget: Table<'t, [u8; 32], ()>,
    /// True where answers about images are to be forgotten with their last item.
    forgets: bool,
    /// Records as changed by this transaction; `None` for a deleted collection.
    changed: HashMap<String, Option<CollectionRecord>>,
    /// Images that lost their last item in a collection by the write being applied.
    released: BTreeSet<ImageHash>,
    /// The same by all writes before it.
    all_released: BTreeSet<ImageHash>,
    /// True where a record was deleted or replaced.
    freed: bool,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t redb::WriteTransaction, forgets: bool) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            collections: transaction.open_table(COLLECTIONS)?,
            items: transaction.open_table(ITEMS)?,
            vectors: transaction.open_table(VECTORS)?,
            ids: transaction.open_table(IDS)?,
            images: transaction.open_table(IMAGES)?,
            doomed: transaction.open_table(DOOMED)?,
            to_forget: transaction.open_table(TO_FORGET)?,
            forgets,
            changed: HashMap::new(),
            released: BTreeSet::new(),
            all_released: BTreeSet::new(),
            freed: false,
        })
    }

    fn apply(&mut self, write: &Write) -> Outcome<Done> {
        match write {
            Write::Create { name, record } => self.create(name, record),
            Write::Drop { name, most } => self.drop_collection(name, *most),
            Write::Put(put) => self.put(put),
            Write::Delete { collection, ids } => self.delete(collection, ids),
        }
    }

    /// The collection as this transaction has it so far.
    fn record(&self, name: &str) -> Result<Option<CollectionRecord>, redb::Error> {
        if let Some(changed) = self.changed.get(name) {
            return Ok(changed.clone());
        }
        self.collections.get(name)?.map(|record| parse(record.value())).transpose()
    }

    fn create(&mut self, name: &str, record: &CollectionRecord) -> Outcome<Done> {
        if self.record(name)?.is_some() {
            return Ok(Err(GalleryError::CollectionExists { name: name.to_owned() }));
        }
        let number = self.meta.get("next_collection")?.map_or(1, |number| number.value());
        self.meta.insert("next_collection", number + 1)?;
        let record = CollectionRecord { number, ..record.clone() };
        self.changed.insert(name.to_owned(), Some(record.clone()));
        Ok(Ok(Done::Created { record }))
    }

    fn drop_collection(&mut self, name: &str, most: Option<usize>) -> Outcome<Done> {
        let Some(record) = self.record(name)? else {
            return Ok(Err(GalleryError::UnknownCollection { name: name.to_owned() }));
        };
        let number = record.number;
        let mut items = Vec::new();
        for entry in self.items.range(span(number))?.take(most.unwrap_or(usize::MAX)) {
            items.push(parse::<ItemRecord>(entry?.1.value())?);
        }
        if most.is_some_and(|most| record.items > most as u64) {
            let ids: Vec<String> = items.into_iter().map(|item| item.id).collect();
            return self.delete(name, &ids);
        }
        self.freed = true;
        for item in items {
            self.ids.remove((number, item.id.as_str()))?;
            if let Some(image) = item.image {
                self.release(image.hash, number)?;
            }
        }
        self.items.retain_in(span(number), |_, _| false)?;
        self.vectors.retain_in(span(number), |_, _| false)?;
        self.changed.insert(name.to_owned(), None);
        Ok(Ok(Done::Dropped { number, items: record.items }))
    }

    fn put(&mut self, put: &Put) -> Outcome<Done> {
        let record = self.record(&put.collection)?.filter(|record| record.number == put.number);
        let Some(mut record) = record else {
            return Ok(Err(GalleryError::UnknownCollection { name: put.collection.clone() }));
        };
        let number = record.number;
        let held = self.ids.get((number, put.item.id.as_str()))?.map(|sequence| sequence.value());
        let sequence = held.unwrap_or(record.next_sequence);
        if held.is_none() {
            record.next_sequence += 1;
            record.items += 1;
            self.ids.insert((number, put.item.id.as_str()), sequence)?;
        }
        if let Some(image) = &put.item.image {
            let key = (*image.hash.bytes(), number);
            let uses = self.images.get(key)?.map_or(0, |uses| uses.value());
            self.images.insert(key, uses + 1)?;
        }
        let item = serde_json::to_vec(&put.item).map_err(corrupted)?;
        let old = match self.items.insert((number, sequence), item.as_slice())? {
            Some(old) => Some(parse::<ItemRecord>(old.value())?),
            None => None,
        };
        self.freed |= old.is_some();
        if let Some(image) = old.and_then(|old| old.image) {
            self.release(image.hash, number)?;
        }
        let values: Vec<u8> = put.vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.vectors.insert((number, sequence), values.as_slice())?;
        self.changed.insert(put.collection.clone(), Some(record));
        Ok(Ok(Done::Stored { sequence }))
    }

    fn delete(&mut self, collection: &str, ids: &[String]) -> Outcome<Done> {
        let Some(mut record) = self.record(collection)? else {
            return Ok(Err(GalleryError::UnknownCollection { name: collection.to_owned() }));
        };
        let number = record.number;
        let mut sequences = Vec::new();
        for id in ids {
            let Some(sequence) = self.ids.remove((number, id.as_str()))?.map(|sequence| sequence.value())
            else {
                continue;
            };
            let old = match self.items.remove((number, sequence))? {
                Some(old) => Some(parse::<ItemRecord>(old.value())?),
                None => None,
            };
            self.vectors.remove((number, sequence))?;
            if let Some(image) = old.and_then(|old| old.image) {
                self.release(image.hash, number)?;
            }
            sequences.push(sequence);
        }
        record.items = record.items.saturating_sub(sequences.len() as u64);
        if !sequences.is_empty() {
            self.freed = true;
            self.changed.insert(collection.to_owned(), Some(record));
        }
        Ok(Ok(Done::Deleted { number, sequences }))
    }

    fn release(&mut self, hash: ImageHash, collection: u64) -> Result<(), redb::Error> {
        let key = (*hash.bytes(), collection);
        let uses = self.images.get(key)?.map_or(0, |uses| uses.value());
        if uses > 1 {
            self.images.insert(key, uses - 1)?;
        } else {
            self.images.remove(key)?;
            self.released.insert(hash);
        }
        Ok(())
    }

    /// Writes the changed records back; returns the images that nothing uses.
    fn finish(mut self, version: Version, touched: &[ImageHash]) -> Result<BTreeSet<ImageHash>, redb::Error> {
        if self.freed && self.meta.get(UNCOMPACTED_SINCE)?.is_none() {
            self.meta.insert(UNCOMPACTED_SINCE, unix_ms())?;
        }
        for (name, record) in self.changed {
            match record {
                Some(mut record) => {
                    record.version = version;
                    let record = serde_json::to_vec(&record).map_err(corrupted)?;
                    self.collections.insert(name.as_str(), record.as_slice())?;
                }
                None => {
                    self.collections.remove(name.as_str())?;
                }
            }
        }
        let shown: BTreeSet<ImageHash> = match self.forgets {
            true => self.all_released.clone(),
            false => BTreeSet::new(),
        };
        self.all_released.extend(touched);
        let mut unused = BTreeSet::new();
        for hash in self.all_released {
            if !is_used(&self.images, &hash)? {
                // Whatever happens after this transaction, its image is deleted in the end.
                self.doomed.insert(hash.bytes(), ())?;
                if shown.contains(&hash) {
                    self.to_forget.insert(hash.bytes(), ())?;
                }
                unused.insert(hash);
            }
        }
        Ok(unused)
    }
}

fn is_used(images: &impl ReadableTable<([u8; 32], u64), u64>, hash: &ImageHash) -> Result<bool, redb::Error> {
    let key = *hash.bytes();
    Ok(images.range((key, 0)..=(key, u64::MAX))?.next().transpose()?.is_some())
}

/// Keys of one collection.
fn span(collection: u64) -> std::ops::RangeInclusive<(u64, u64)> {
    (collection, 0)..=(collection, u64::MAX)
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes).map_err(corrupted)
}

fn corrupted(cause: impl std::fmt::Display) -> redb::Error {
    redb::Error::Corrupted(format!("a record cannot be read: {cause}"))
}
