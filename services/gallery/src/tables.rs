//! One transaction on the store's tables.

use std::collections::{BTreeSet, HashMap};

use redb::{Database, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use thicket_compaction::copy_table;

use crate::crash;
use crate::error::GalleryError;
use crate::log::{self, DROPPED, LOG_BYTES, RECORD};
use crate::record::{CollectionRecord, ImageHash, ItemRecord, Version};
use crate::source::Position;
use crate::store::lists::{DOOMED, TO_FORGET, WORDS};
use crate::store::{Applied, FORMAT, unix_ms};
use crate::write::{Done, Put, Write};

/// When something was deleted or replaced whose bytes may still be in the file, milliseconds since 1970-01-01 UTC: the
/// first such moment since the file was made.
pub(crate) const UNCOMPACTED_SINCE: &str = "uncompacted_since";

/// Number of the next new collection.
const NEXT_COLLECTION: &str = "next_collection";
/// Number of the last transaction.
pub(crate) const TRANSACTION: &str = "transaction";
/// Bytes of the entries in [`LOG`].
const BYTES_OF_LOG: &str = "log_bytes";

pub(crate) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Version of the last transaction, under the empty key.
pub(crate) const LAST: TableDefinition<&str, Version> = TableDefinition::new("last_transaction");
/// Name to [`CollectionRecord`] as JSON.
pub(crate) const COLLECTIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("collections");
/// (collection number, sequence number) to [`ItemRecord`] as JSON.
pub(crate) const ITEMS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("items");
/// (collection number, sequence number) to f32 values, little-endian.
pub(crate) const VECTORS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("vectors");
/// (collection number, caller's id) to sequence number.
pub(crate) const IDS: TableDefinition<(u64, &str), u64> = TableDefinition::new("ids");
/// (image hash, collection number) to the number of items that use it.
pub(crate) const IMAGES: TableDefinition<([u8; 32], u64), u64> = TableDefinition::new("images");
/// Number of a transaction to what it changed; see [`log`].
pub(crate) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");

/// Copies every table, and of the small facts all but the one that a new file makes untrue.
pub(crate) fn copy_all(from: &ReadTransaction, to: &WriteTransaction) -> Result<(), redb::Error> {
    crash::at("compact.begin");
    copy_table(from, to, META, |fact| fact != UNCOMPACTED_SINCE)?;
    copy_table(from, to, LAST, |_| true)?;
    copy_table(from, to, COLLECTIONS, |_| true)?;
    crash::at("compact.half");
    copy_table(from, to, ITEMS, |_| true)?;
    copy_table(from, to, VECTORS, |_| true)?;
    copy_table(from, to, IDS, |_| true)?;
    copy_table(from, to, IMAGES, |_| true)?;
    copy_table(from, to, LOG, |_| true)?;
    copy_table(from, to, DOOMED, |_| true)?;
    copy_table(from, to, TO_FORGET, |_| true)?;
    copy_table(from, to, WORDS, |_| true)?;
    crash::at("compact.copied");
    Ok(())
}

/// Creates the tables of an empty store; returns the format found.
pub(crate) fn prepare(database: &Database) -> Result<u64, redb::Error> {
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
        let mut tables = Tables::open(&transaction, false)?;
        transaction.open_table(WORDS)?;
        let last = transaction.open_table(LAST)?.get("")?.map(|version| version.value());
        if let Some(version) = last {
            tables.mend_log(version)?;
        }
    }
    transaction.commit()?;
    Ok(format)
}

/// What a transaction does to images beside its writes; see [`crate::store::Store::apply`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Images<'a> {
    pub(crate) touched: &'a [ImageHash],
    pub(crate) deleted: &'a [ImageHash],
    pub(crate) forgets: bool,
}

pub(crate) fn transact(
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
            crash::at("store.apply");
            let result = tables.apply(write)?;
            let released = std::mem::take(&mut tables.released);
            tables.all_released.extend(&released);
            results.push(result.map(|done| (done, released)));
        }
        let freed = tables.freed;
        let (unused, number) = tables.finish(version, touched)?;
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
        let position = Position { transaction: number, version };
        *applied = Some(Applied { results, freed, unused: unused.into_iter().collect(), position });
    }
    crash::at("store.commit");
    transaction.commit()?;
    crash::at("store.committed");
    Ok(())
}

/// Outer: the store failed. Inner: the write broke a rule and changed nothing.
type Outcome<T> = Result<Result<T, GalleryError>, redb::Error>;

/// The tables in one transaction, and what it did so far.
pub(crate) struct Tables<'t> {
    pub(crate) meta: Table<'t, &'static str, u64>,
    pub(crate) collections: Table<'t, &'static str, &'static [u8]>,
    pub(crate) items: Table<'t, (u64, u64), &'static [u8]>,
    pub(crate) vectors: Table<'t, (u64, u64), &'static [u8]>,
    pub(crate) ids: Table<'t, (u64, &'static str), u64>,
    pub(crate) images: Table<'t, ([u8; 32], u64), u64>,
    log: Table<'t, u64, &'static [u8]>,
    doomed: Table<'t, [u8; 32], ()>,
    to_forget: Table<'t, [u8; 32], ()>,
    /// True where answers about images are to be forgotten with their last item.
    forgets: bool,
    /// What goes into the log.
    noted: BTreeSet<log::Key>,
    /// Records as changed by this transaction; `None` for a deleted collection.
    changed: HashMap<String, Option<CollectionRecord>>,
    /// Images that lost their last item in a collection by the write being applied.
    pub(crate) released: BTreeSet<ImageHash>,
    /// The same by all writes before it.
    pub(crate) all_released: BTreeSet<ImageHash>,
    /// True where a record was deleted or replaced.
    pub(crate) freed: bool,
}

impl<'t> Tables<'t> {
    pub(crate) fn open(transaction: &'t WriteTransaction, forgets: bool) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            collections: transaction.open_table(COLLECTIONS)?,
            items: transaction.open_table(ITEMS)?,
            vectors: transaction.open_table(VECTORS)?,
            ids: transaction.open_table(IDS)?,
            images: transaction.open_table(IMAGES)?,
            log: transaction.open_table(LOG)?,
            doomed: transaction.open_table(DOOMED)?,
            to_forget: transaction.open_table(TO_FORGET)?,
            forgets,
            noted: BTreeSet::new(),
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
        let number = self.meta.get(NEXT_COLLECTION)?.map_or(1, |number| number.value());
        self.meta.insert(NEXT_COLLECTION, number + 1)?;
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
        self.noted.insert((number, DROPPED));
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
        self.noted.insert((number, sequence));
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
            self.noted.insert((number, sequence));
        }
        record.items = record.items.saturating_sub(sequences.len() as u64);
        if !sequences.is_empty() {
            self.freed = true;
            self.changed.insert(collection.to_owned(), Some(record));
        }
        Ok(Ok(Done::Deleted { number, sequences }))
    }

    pub(crate) fn release(&mut self, hash: ImageHash, collection: u64) -> Result<(), redb::Error> {
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

    /// Writes the changed records and the log; returns the images that nothing uses, and the transaction's number.
    fn finish(
        mut self,
        version: Version,
        touched: &[ImageHash],
    ) -> Result<(BTreeSet<ImageHash>, u64), redb::Error> {
        self.note_freed()?;
        for (name, record) in std::mem::take(&mut self.changed) {
            match record {
                Some(mut record) => {
                    record.version = version;
                    self.noted.insert((record.number, RECORD));
                    let record = serde_json::to_vec(&record).map_err(corrupted)?;
                    self.collections.insert(name.as_str(), record.as_slice())?;
                }
                None => {
                    self.collections.remove(name.as_str())?;
                }
            }
        }
        let number = self.number()? + 1;
        let noted = std::mem::take(&mut self.noted);
        self.append(number, &log::encode(&version, &noted))?;
        let shown: BTreeSet<ImageHash> = match self.forgets {
            true => self.all_released.clone(),
            false => BTreeSet::new(),
        };
        self.all_released.extend(touched);
        let unused = self.doom_unused()?;
        for hash in unused.intersection(&shown) {
            self.to_forget.insert(hash.bytes(), ())?;
        }
        Ok((unused, number))
    }

    /// Empties the tables of a replica.
    pub(crate) fn clear(&mut self) -> Result<(), redb::Error> {
        self.freed |= self.items.first()?.is_some() || self.collections.first()?.is_some();
        self.collections.retain(|_, _| false)?;
        self.items.retain(|_, _| false)?;
        self.vectors.retain(|_, _| false)?;
        self.ids.retain(|_, _| false)?;
        self.images.retain(|_, _| false)?;
        Ok(())
    }

    /// Takes collections out by number, with all they hold.
    pub(crate) fn drop_numbers(&mut self, numbers: &BTreeSet<u64>) -> Result<(), redb::Error> {
        let mut names = Vec::new();
        for entry in self.collections.iter()? {
            let (name, record) = entry?;
            if numbers.contains(&parse::<CollectionRecord>(record.value())?.number) {
                names.push(name.value().to_owned());
            }
        }
        for name in names {
            self.collections.remove(name.as_str())?;
        }
        for number in numbers {
            let mut sequences = Vec::new();
            for entry in self.items.range(span(*number))? {
                sequences.push(entry?.0.value().1);
            }
            for sequence in sequences {
                self.remove_item(*number, sequence)?;
            }
        }
        Ok(())
    }

    /// Takes an item out, if it is there.
    pub(crate) fn remove_item(&mut self, number: u64, sequence: u64) -> Result<(), redb::Error> {
        let old = match self.items.remove((number, sequence))? {
            Some(old) => parse::<ItemRecord>(old.value())?,
            None => return Ok(()),
        };
        self.freed = true;
        self.vectors.remove((number, sequence))?;
        self.ids.remove((number, old.id.as_str()))?;
        if let Some(image) = old.image {
            self.release(image.hash, number)?;
            self.all_released.insert(image.hash);
        }
        Ok(())
    }

    /// Puts an item where none is, as the writer stored it.
    pub(crate) fn insert_item(
        &mut self,
        number: u64,
        sequence: u64,
        item: &ItemRecord,
        record: &[u8],
        vector: &[u8],
    ) -> Result<(), redb::Error> {
        self.items.insert((number, sequence), record)?;
        self.vectors.insert((number, sequence), vector)?;
        self.ids.insert((number, item.id.as_str()), sequence)?;
        if let Some(image) = &item.image {
            let key = (*image.hash.bytes(), number);
            let uses = self.images.get(key)?.map_or(0, |uses| uses.value());
            self.images.insert(key, uses + 1)?;
        }
        Ok(())
    }

    /// Writes a collection's record as the writer has it.
    pub(crate) fn put_record(&mut self, name: &str, record: &CollectionRecord) -> Result<(), redb::Error> {
        let bytes = serde_json::to_vec(record).map_err(corrupted)?;
        self.collections.insert(name, bytes.as_slice())?;
        // A replica that becomes the writer gives no number twice.
        let next = self.meta.get(NEXT_COLLECTION)?.map_or(1, |number| number.value());
        if record.number >= next {
            self.meta.insert(NEXT_COLLECTION, record.number + 1)?;
        }
        Ok(())
    }

    /// Remembers since when bytes of what was deleted are in the file, if they are.
    pub(crate) fn note_freed(&mut self) -> Result<(), redb::Error> {
        if self.freed && self.meta.get(UNCOMPACTED_SINCE)?.is_none() {
            self.meta.insert(UNCOMPACTED_SINCE, unix_ms())?;
        }
        Ok(())
    }

    /// Which of the released images no item uses: whatever happens after this transaction, they are deleted in the end.
    pub(crate) fn doom_unused(&mut self) -> Result<BTreeSet<ImageHash>, redb::Error> {
        let mut unused = BTreeSet::new();
        for hash in &self.all_released {
            if !is_used(&self.images, hash)? {
                self.doomed.insert(hash.bytes(), ())?;
                unused.insert(*hash);
            }
        }
        Ok(unused)
    }

    /// Number of the last transaction.
    fn number(&self) -> Result<u64, redb::Error> {
        Ok(self.meta.get(TRANSACTION)?.map_or(0, |number| number.value()))
    }

    /// Adds an entry to the log, and lets the oldest go where there is too much of it.
    fn append(&mut self, number: u64, entry: &[u8]) -> Result<(), redb::Error> {
        self.meta.insert(TRANSACTION, number)?;
        self.log.insert(number, entry)?;
        let mut bytes = self.meta.get(BYTES_OF_LOG)?.map_or(0, |bytes| bytes.value()) + entry.len() as u64;
        while bytes > LOG_BYTES {
            let Some((_, oldest)) = self.log.pop_first()? else { break };
            bytes = bytes.saturating_sub(oldest.value().len() as u64);
        }
        self.meta.insert(BYTES_OF_LOG, bytes)?;
        Ok(())
    }

    /// Begins the log anew at a state, as if nothing were known of what led to it.
    pub(crate) fn restart_log(&mut self, at: Position) -> Result<(), redb::Error> {
        self.log.retain(|_, _| false)?;
        self.meta.insert(BYTES_OF_LOG, 0)?;
        self.append(at.transaction, &log::encode(&at.version, &BTreeSet::new()))
    }

    /// Begins the log anew where it does not lead to the last transaction: a version without a log has written.
    fn mend_log(&mut self, last: Version) -> Result<(), redb::Error> {
        let number = self.number()?;
        let entry = self.log.get(number)?.and_then(|entry| log::decode(entry.value()));
        if entry.is_some_and(|(version, _)| version == last) {
            return Ok(());
        }
        self.restart_log(Position { transaction: number + 1, version: last })
    }
}

pub(crate) fn is_used(
    images: &impl ReadableTable<([u8; 32], u64), u64>,
    hash: &ImageHash,
) -> Result<bool, redb::Error> {
    let key = *hash.bytes();
    Ok(images.range((key, 0)..=(key, u64::MAX))?.next().transpose()?.is_some())
}

/// Keys of one collection.
pub(crate) fn span(collection: u64) -> std::ops::RangeInclusive<(u64, u64)> {
    (collection, 0)..=(collection, u64::MAX)
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes).map_err(corrupted)
}

pub(crate) fn corrupted(cause: impl std::fmt::Display) -> redb::Error {
    redb::Error::Corrupted(format!("a record cannot be read: {cause}"))
}
