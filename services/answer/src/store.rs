use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use thicket_compaction::copy_table;

/// The file in the data folder.
const FILE: &str = "answers.redb";
/// Version of the layout below.
const FORMAT: u64 = 1;
/// Memory for pages of the file.
const PAGE_CACHE_BYTES: usize = 16 << 20;
/// Fact of [`META`]: answers have left whose bytes may still be in free pages of the file.
const LEFT: &str = "left";
/// Fact of [`META`]: some of them are about images that were to be forgotten.
const FORGOTTEN: &str = "forgotten";
/// What an answer is counted beside its own bytes: keys and places in three tables.
const OVERHEAD_BYTES: u64 = 256;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Key of an answer to its number and its [`Kept`] as JSON.
const ANSWERS: TableDefinition<[u8; 32], (u64, &[u8])> = TableDefinition::new("answers");
/// Number of an answer, counted up, to its image, its key and what it is counted.
const ORDER: TableDefinition<u64, ([u8; 32], [u8; 32], u64)> = TableDefinition::new("order");
/// (image, key): the answers about each image.
const IMAGES: TableDefinition<([u8; 32], [u8; 32]), ()> = TableDefinition::new("images");

/// What an answer depends on: the image, and everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// BLAKE3 of the image's bytes.
    pub(crate) image: [u8; 32],
    rest: [u8; 32],
}

impl Key {
    /// `parts` are what else the answer depends on, the model and the prompt first of all.
    pub(crate) fn new(image: &[u8], parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self { image: blake3::hash(image).into(), rest: hasher.finalize().into() }
    }

    fn whole(&self) -> [u8; 32] {
        *blake3::Hasher::new().update(&self.image).update(&self.rest).finalize().as_bytes()
    }
}

/// An answer as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kept {
    /// What the model said of an image.
    Description {
        /// The generated text.
        text: String,
    },
    /// Whether a text fits an image.
    Judgement {
        /// Probability of Yes.
        p_yes: f64,
        /// The model answered with a yes or no word.
        usable: bool,
        /// The generated text where the logits gave no clear word.
        raw_text: String,
    },
}

/// Why a store cannot be opened, in one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Another process has it.
    #[error("answer store {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// Another version wrote it.
    #[error("answer store {} has format {found}, this version reads {expected}", path.display())]
    Format { path: PathBuf, expected: u64, found: u64 },
    /// It is damaged, or the disk is.
    #[error("answer store {} cannot be used: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
}

/// Answers that outlive the process: at most so many bytes, the oldest leaving first. Owned by one thread.
#[derive(Debug)]
pub(crate) struct Store {
    /// `None` after a failure until the file could be opened again.
    database: Option<Database>,
    path: PathBuf,
    limit: u64,
}

impl Store {
    /// Opens or creates the store in a folder, which is created where it is missing.
    pub(crate) fn open(folder: &Path, limit: u64) -> Result<Self, OpenError> {
        let path = folder.join(FILE);
        let unusable = |cause: &dyn std::fmt::Display| OpenError::Unusable {
            path: path.clone(),
            reason: cause.to_string().lines().next().unwrap_or_default().to_owned(),
        };
        std::fs::create_dir_all(folder).map_err(|cause| unusable(&cause))?;
        let database = create(&path).map_err(|cause| match cause {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.clone() },
            cause => unusable(&cause),
        })?;
        thicket_compaction::remove_unfinished(&path).map_err(|cause| unusable(&cause))?;
        let found = prepare(&database).map_err(|cause| unusable(&cause))?;
        if found != FORMAT {
            return Err(OpenError::Format { path, expected: FORMAT, found });
        }
        let mut store = Self { database: Some(database), path: path.clone(), limit };
        // The limit may be lower than it was.
        store.write(|tables| tables.shrink(limit)).map_err(|cause| unusable(&cause))?;
        // A crash, or a full disk, may have come between a deletion and the compaction after it.
        if store.fact(FORGOTTEN).map_err(|cause| unusable(&cause))?
            && let Err(error) = store.compact()
        {
            tracing::warn!(%error, "answers that were to be forgotten are still in the file");
        }
        Ok(store)
    }

    /// The answer under a key.
    pub(crate) fn get(&mut self, key: &Key) -> Result<Option<Kept>, redb::Error> {
        let table = self.database()?.begin_read()?.open_table(ANSWERS)?;
        match table.get(key.whole())? {
            None => Ok(None),
            Some(found) => serde_json::from_slice(found.value().1)
                .map(Some)
                .map_err(|cause| redb::Error::Corrupted(format!("an answer cannot be read: {cause}"))),
        }
    }

    /// Keeps answers in place of any others of their keys; durable when it returns. An answer larger than the limit is
    /// not kept.
    pub(crate) fn put(&mut self, answers: &[(Key, Kept)]) -> Result<(), redb::Error> {
        let limit = self.limit;
        self.write(|tables| {
            for (key, kept) in answers {
                let value =
                    serde_json::to_vec(kept).map_err(|cause| redb::Error::Corrupted(cause.to_string()))?;
                tables.put(key, &value)?;
            }
            tables.shrink(limit)
        })
    }

    /// Deletes every answer about images, and from the file what is left of those that had to make room before. Returns
    /// how many there were. May be called again where it fails.
    pub(crate) fn forget(&mut self, images: &BTreeSet<[u8; 32]>) -> Result<u64, redb::Error> {
        let mut forgotten = 0;
        self.write(|tables| {
            for image in images {
                forgotten += tables.forget(image)?;
            }
            if forgotten > 0 {
                tables.meta.insert(FORGOTTEN, 1)?;
            }
            Ok(())
        })?;
        // An answer about one of the images may have left earlier, and its bytes not yet.
        if self.fact(LEFT)? {
            self.compact()?;
        }
        Ok(forgotten)
    }

    /// Makes a new file of what the store holds.
    fn compact(&mut self) -> Result<(), redb::Error> {
        let path = self.path.clone();
        let compacted = thicket_compaction::compact(self.database()?, &path, create, copy_all);
        // After an I/O error the old one refuses everything until it is opened again.
        self.database = None;
        self.database = Some(compacted?);
        Ok(())
    }

    fn fact(&mut self, name: &str) -> Result<bool, redb::Error> {
        let table = self.database()?.begin_read()?.open_table(META)?;
        Ok(table.get(name)?.is_some())
    }

    fn database(&mut self) -> Result<&Database, redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => create(&self.path)?,
        };
        Ok(self.database.insert(database))
    }

    fn write(
        &mut self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database()?.begin_write()?;
        // A crash must not cost a walk over everything at the next start.
        transaction.set_quick_repair(true);
        change(&mut Tables::open(&transaction)?)?;
        transaction.commit()?;
        Ok(())
    }
}

fn create(path: &Path) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(PAGE_CACHE_BYTES).create(path)
}

/// Copies every table, and of the small facts all but those that a new file makes untrue.
fn copy_all(from: &ReadTransaction, to: &WriteTransaction) -> Result<(), redb::Error> {
    copy_table(from, to, META, |fact| ![LEFT, FORGOTTEN].contains(&fact))?;
    copy_table(from, to, ANSWERS, |_| true)?;
    copy_table(from, to, ORDER, |_| true)?;
    copy_table(from, to, IMAGES, |_| true)
}

/// Creates the tables of an empty store; returns the format found.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let found = transaction.open_table(META)?.get("format")?.map(|format| format.value());
    match found {
        Some(format) => return Ok(format),
        None => _ = transaction.open_table(META)?.insert("format", FORMAT)?,
    }
    Tables::open(&transaction)?;
    transaction.commit()?;
    Ok(FORMAT)
}

/// The tables in one transaction.
struct Tables<'t> {
    meta: Table<'t, &'static str, u64>,
    answers: Table<'t, [u8; 32], (u64, &'static [u8])>,
    order: Table<'t, u64, ([u8; 32], [u8; 32], u64)>,
    images: Table<'t, ([u8; 32], [u8; 32]), ()>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            answers: transaction.open_table(ANSWERS)?,
            order: transaction.open_table(ORDER)?,
            images: transaction.open_table(IMAGES)?,
        })
    }

    fn bytes(&self) -> Result<u64, redb::Error> {
        Ok(self.meta.get("bytes")?.map_or(0, |bytes| bytes.value()))
    }

    fn put(&mut self, key: &Key, value: &[u8]) -> Result<(), redb::Error> {
        let (image, key) = (key.image, key.whole());
        self.remove(&key)?;
        let number = self.order.last()?.map_or(0, |(number, _)| number.value() + 1);
        let size = value.len() as u64 + OVERHEAD_BYTES;
        self.answers.insert(key, (number, value))?;
        self.order.insert(number, (image, key, size))?;
        self.images.insert((image, key), ())?;
        let bytes = self.bytes()? + size;
        self.meta.insert("bytes", bytes)?;
        Ok(())
    }

    fn remove(&mut self, key: &[u8; 32]) -> Result<(), redb::Error> {
        let Some(number) = self.answers.remove(key)?.map(|found| found.value().0) else { return Ok(()) };
        let Some((image, size)) = self.order.remove(number)?.map(|found| {
            let (image, _, size) = found.value();
            (image, size)
        }) else {
            return Err(redb::Error::Corrupted(format!("answer {number} has no place in the order")));
        };
        self.images.remove((image, *key))?;
        self.meta.insert(LEFT, 1)?;
        let bytes = self.bytes()?.saturating_sub(size);
        self.meta.insert("bytes", bytes)?;
        Ok(())
    }

    /// Removes the oldest answers until the rest fits the limit.
    fn shrink(&mut self, limit: u64) -> Result<(), redb::Error> {
        while self.bytes()? > limit {
            let Some(key) = self.order.first()?.map(|(_, found)| found.value().1) else { break };
            self.remove(&key)?;
        }
        Ok(())
    }

    fn forget(&mut self, image: &[u8; 32]) -> Result<u64, redb::Error> {
        let mut keys = Vec::new();
        for entry in self.images.range((*image, [0; 32])..=(*image, [255; 32]))? {
            keys.push(entry?.0.value().1);
        }
        for key in &keys {
            self.remove(key)?;
        }
        Ok(keys.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn key(image: &str, prompt: &str) -> Key {
        Key::new(image.as_bytes(), &["model", prompt])
    }

    fn text(text: &str) -> Kept {
        Kept::Description { text: text.to_owned() }
    }

    #[test]
    fn a_key_depends_on_image_model_and_prompt() {
        let keys = [
            Key::new(b"image", &["model", "prompt"]),
            Key::new(b"imagf", &["model", "prompt"]),
            Key::new(b"image", &["modem", "prompt"]),
            Key::new(b"image", &["model", "prompu"]),
            Key::new(b"image", &["modelp", "rompt"]),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
    }

    #[test]
    fn an_answer_survives_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let judgement = Kept::Judgement { p_yes: 0.1 + 0.2, usable: true, raw_text: String::new() };
        let mut store = Store::open(folder.path(), LIMIT).expect("opened");
        store.put(&[(key("a", "1"), text("a man")), (key("a", "2"), judgement.clone())]).expect("put");
        drop(store);
        let mut store = Store::open(folder.path(), LIMIT).expect("opened");
        assert_eq!(store.get(&key("a", "1")).expect("read"), Some(text("a man")));
        assert_eq!(store.get(&key("a", "2")).expect("read"), Some(judgement), "to the bit");
        assert_eq!(store.get(&key("b", "1")).expect("read"), None);
    }

    #[test]
    fn the_oldest_answers_leave_when_the_limit_is_reached() {
        let folder = tempfile::tempdir().expect("a folder");
        let size = OVERHEAD_BYTES + serde_json::to_vec(&text("0")).expect("written").len() as u64;
        let mut store = Store::open(folder.path(), 3 * size).expect("opened");
        for number in 0..5 {
            let answer = [(key(&number.to_string(), "1"), text(&number.to_string()))];
            store.put(&answer).expect("put");
            store.put(&answer).expect("the same again takes no more room");
        }
        let held = |store: &mut Store| -> Vec<u32> {
            let there = |number: &u32| store.get(&key(&number.to_string(), "1")).expect("read").is_some();
            (0..5).filter(there).collect()
        };
        assert_eq!(held(&mut store), [2, 3, 4]);
        store.put(&[(key("5", "1"), text(&"x".repeat(4 * size as usize)))]).expect("put");
        assert_eq!(held(&mut store).len(), 0, "too large for the limit: everything older left before it");
        drop(store);
        let mut store = Store::open(folder.path(), 0).expect("opened with a lower limit");
        assert_eq!(held(&mut store).len(), 0);
    }

    #[test]
    fn what_is_said_of_a_forgotten_image_leaves_the_file_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::open(folder.path(), LIMIT).expect("opened");
        for number in 0..40 {
            let said = format!("remembered words {number} {}", "and more of them ".repeat(20));
            store.put(&[(key(&number.to_string(), "1"), text(&said))]).expect("put");
        }
        store.put(&[(key("7", "2"), text("secret words of another kind"))]).expect("put");
        let image = key("7", "1").image;
        assert_eq!(store.forget(&[image].into()).expect("forgotten"), 2);
        assert_eq!(store.forget(&[image].into()).expect("forgotten"), 0);
        assert_eq!(store.get(&key("7", "1")).expect("read"), None);
        assert!(store.get(&key("8", "1")).expect("read").is_some());
        drop(store);
        let file = std::fs::read(folder.path().join(FILE)).expect("the file");
        let holds = |words: &str| file.windows(words.len()).any(|window| window == words.as_bytes());
        assert!(holds("remembered words 8 "));
        assert!(!holds("remembered words 7 ") && !holds("secret words"));
    }

    #[test]
    fn answers_that_made_room_for_others_leave_the_file_when_something_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let size =
            OVERHEAD_BYTES + serde_json::to_vec(&text("secret words 00")).expect("written").len() as u64;
        let mut store = Store::open(folder.path(), 20 * size).expect("opened");
        for number in 10..90 {
            store
                .put(&[(key(&number.to_string(), "1"), text(&format!("secret words {number}")))])
                .expect("put");
        }
        // Nothing is kept of it any more.
        assert_eq!(store.forget(&[key("15", "1").image].into()).expect("forgotten"), 0);
        let file = std::fs::read(folder.path().join(FILE)).expect("the file");
        let in_file = |number: &u32| {
            let words = format!("secret words {number}");
            file.windows(words.len()).any(|window| window == words.as_bytes())
        };
        assert_eq!((10..90).filter(in_file).collect::<Vec<u32>>(), (70..90).collect::<Vec<u32>>());
    }

    #[test]
    fn a_compaction_that_did_not_happen_happens_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::open(folder.path(), LIMIT).expect("opened");
        for number in 10..40 {
            store
                .put(&[(key(&number.to_string(), "1"), text(&format!("secret words {number}")))])
                .expect("put");
        }
        // What `forget` does up to its compaction.
        let image = key("15", "1").image;
        let deleted = store.write(|tables| {
            tables.forget(&image)?;
            tables.meta.insert(FORGOTTEN, 1)?;
            Ok(())
        });
        deleted.expect("deleted");
        drop(store);
        drop(Store::open(folder.path(), LIMIT).expect("opened"));
        let file = std::fs::read(folder.path().join(FILE)).expect("the file");
        assert!(!file.windows(15).any(|window| window == b"secret words 15"));
        assert!(file.windows(15).any(|window| window == b"secret words 16"));
    }

    #[test]
    fn a_damaged_store_is_refused_in_one_line() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(FILE), "no store at all ".repeat(1000)).expect("written");
        let line = Store::open(folder.path(), LIMIT).expect_err("damaged").to_string();
        assert!(line.contains(FILE) && line.lines().count() == 1, "{line}");
    }

    #[test]
    fn a_store_of_another_version_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path(), LIMIT).expect("opened");
        let transaction = store.database.as_ref().expect("open").begin_write().expect("a transaction");
        transaction.open_table(META).expect("open").insert("format", 9).expect("set");
        transaction.commit().expect("committed");
        drop(store);
        let line = Store::open(folder.path(), LIMIT).expect_err("another format").to_string();
        assert!(line.ends_with("has format 9, this version reads 1"), "{line}");
    }

    #[test]
    fn a_store_in_use_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let _store = Store::open(folder.path(), LIMIT).expect("opened");
        assert!(matches!(Store::open(folder.path(), LIMIT), Err(OpenError::InUse { .. })));
    }
}
