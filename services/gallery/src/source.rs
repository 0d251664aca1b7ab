//! The store as replicas are told of it: read beside the thread that writes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};
use thicket_proto::v1;
use tokio::sync::watch;

use crate::error::GalleryError;
use crate::log::{self, DROPPED, Key, RECORD};
use crate::record::{CollectionRecord, Version};
use crate::tables::{COLLECTIONS, ITEMS, LAST, LOG, META, TRANSACTION, VECTORS, parse};

/// Bytes of the items that are sent together, but for one that is larger.
const PART_BYTES: usize = 1 << 20;
/// Items that are sent together.
const PART_ITEMS: usize = 256;

/// A state of the store: the transaction that led to it, by number and by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub(crate) transaction: u64,
    pub(crate) version: Version,
}

impl Position {
    /// True where no transaction ever was.
    pub(crate) fn is_unwritten(self) -> bool {
        self == Self::default()
    }
}

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        Self { transaction: position.transaction, version: position.version.to_vec().into() }
    }
}

impl TryFrom<v1::Position> for Position {
    type Error = &'static str;

    fn try_from(position: v1::Position) -> Result<Self, Self::Error> {
        let version = position.version.as_ref().try_into().map_err(|_| "a version has 16 bytes")?;
        Ok(Self { transaction: position.transaction, version })
    }
}

/// The store's database as long as it can be used, and where it is.
#[derive(Debug)]
pub(crate) struct Source {
    database: RwLock<Option<Arc<Database>>>,
    /// Counts the databases that were given up after an error: whoever reads one must let it go.
    given_up: AtomicU64,
    at: watch::Sender<Position>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            database: RwLock::default(),
            given_up: AtomicU64::new(0),
            at: watch::Sender::new(Position::default()),
        }
    }
}

impl Source {
    /// The database to read from now on.
    pub(crate) fn set(&self, database: &Arc<Database>) {
        *self.database.write() = Some(database.clone());
    }

    /// The database cannot be used any more.
    pub(crate) fn give_up(&self) {
        self.database.write().take();
        self.given_up.fetch_add(1, Ordering::SeqCst);
    }

    /// What was committed can be read, in memory too.
    pub(crate) fn announce(&self, position: Position) {
        self.at.send_if_modified(|before| {
            let modified = *before != position;
            *before = position;
            modified
        });
    }

    /// The last state that was announced.
    pub(crate) fn position(&self) -> Position {
        *self.at.borrow()
    }

    /// Follows it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Position> {
        self.at.subscribe()
    }

    /// Begins to read what leads from a state to the present one; `None` where that is the present one.
    pub(crate) fn step(self: &Arc<Self>, from: Position) -> Result<Option<StepReader>, GalleryError> {
        let given_up = self.given_up.load(Ordering::SeqCst);
        let database = self.database.read().clone().ok_or(GalleryError::StoreReopened)?;
        let reading = |cause| GalleryError::internal("reading the store for a replica", cause);
        let transaction = database.begin_read().map_err(|cause| reading(redb::Error::from(cause)))?;
        let Some((to, plan)) = plan(&transaction, from).map_err(reading)? else { return Ok(None) };
        Ok(Some(StepReader { source: self.clone(), given_up, to, plan, transaction, _database: database }))
    }
}

/// What a step consists of.
#[derive(Debug)]
enum Plan {
    /// Everything.
    Whole {
        /// The last item that was read.
        after: Option<Key>,
    },
    /// What these keys stand for.
    Keys {
        collections: BTreeSet<u64>,
        dropped: BTreeSet<u64>,
        items: std::collections::btree_set::IntoIter<Key>,
    },
}

/// Reads one step, part by part, from one state of the store, whatever is written meanwhile.
pub(crate) struct StepReader {
    source: Arc<Source>,
    given_up: u64,
    to: Position,
    plan: Plan,
    transaction: ReadTransaction,
    /// A transaction ends with its database.
    _database: Arc<Database>,
}

impl std::fmt::Debug for StepReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepReader").field("to", &self.to).finish_non_exhaustive()
    }
}

impl StepReader {
    /// The state that the step leads to.
    pub(crate) fn to(&self) -> Position {
        self.to
    }

    /// How the step begins.
    pub(crate) fn begin(&self) -> Result<v1::StepBegin, GalleryError> {
        self.read(|transaction| {
            let (whole, wanted, dropped) = match &self.plan {
                Plan::Whole { .. } => (true, None, Vec::new()),
                Plan::Keys { collections, dropped, .. } => {
                    (false, Some(collections), dropped.iter().copied().collect())
                }
            };
            let mut collections = Vec::new();
            for entry in transaction.open_table(COLLECTIONS)?.iter()? {
                let (name, record) = entry?;
                let number = parse::<CollectionRecord>(record.value())?.number;
                if wanted.is_none_or(|wanted| wanted.contains(&number)) {
                    collections.push(v1::StoredCollection {
                        name: name.value().to_owned(),
                        record: record.value().to_vec().into(),
                    });
                }
            }
            Ok(v1::StepBegin { to: Some(self.to.into()), whole, collections, dropped })
        })
    }

    /// The next items; none at the end.
    pub(crate) fn items(&mut self) -> Result<Vec<v1::StoredItem>, GalleryError> {
        let mut plan = std::mem::replace(&mut self.plan, Plan::Whole { after: None });
        let items = self.read(|transaction| {
            let (records, vectors) = (transaction.open_table(ITEMS)?, transaction.open_table(VECTORS)?);
            let mut part = Part::default();
            match &mut plan {
                Plan::Whole { after } => {
                    let first = after.map_or((0, 0), |(collection, sequence)| (collection, sequence + 1));
                    for entry in records.range(first..)? {
                        if part.is_full() {
                            break;
                        }
                        let (key, record) = entry?;
                        let vector = vectors.get(key.value())?;
                        part.push(
                            key.value(),
                            record.value(),
                            vector.as_ref().map_or(&[], |vector| vector.value()),
                        );
                        *after = Some(key.value());
                    }
                }
                Plan::Keys { items, .. } => {
                    while !part.is_full()
                        && let Some(key) = items.next()
                    {
                        match records.get(key)? {
                            None => part.push(key, &[], &[]),
                            Some(record) => {
                                let vector = vectors.get(key)?;
                                let vector = vector.as_ref().map_or(&[][..], |vector| vector.value());
                                part.push(key, record.value(), vector);
                            }
                        }
                    }
                }
            }
            Ok(part.items)
        });
        self.plan = plan;
        items
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, GalleryError> {
        if self.source.given_up.load(Ordering::SeqCst) != self.given_up {
            return Err(GalleryError::StoreReopened);
        }
        read(&self.transaction)
            .map_err(|cause| GalleryError::internal("reading the store for a replica", cause))
    }
}

/// Items on their way into one message.
#[derive(Debug, Default)]
struct Part {
    items: Vec<v1::StoredItem>,
    bytes: usize,
}

impl Part {
    fn is_full(&self) -> bool {
        self.bytes >= PART_BYTES || self.items.len() >= PART_ITEMS
    }

    fn push(&mut self, (collection, sequence): Key, record: &[u8], vector: &[u8]) {
        self.bytes += record.len() + vector.len();
        let (record, vector) = (record.to_vec().into(), vector.to_vec().into());
        self.items.push(v1::StoredItem { collection, sequence, record, vector });
    }
}

/// What leads from a state to the one that a transaction sees.
fn plan(transaction: &ReadTransaction, from: Position) -> Result<Option<(Position, Plan)>, redb::Error> {
    let number = transaction.open_table(META)?.get(TRANSACTION)?.map_or(0, |number| number.value());
    let version = transaction.open_table(LAST)?.get("")?.map(|version| version.value()).unwrap_or_default();
    let to = Position { transaction: number, version };
    if from == to {
        return Ok(None);
    }
    let whole = Ok(Some((to, Plan::Whole { after: None })));
    let entries = transaction.open_table(LOG)?;
    let known = entries.get(from.transaction)?.and_then(|entry| log::decode(entry.value()));
    if known.is_none_or(|(version, _)| version != from.version) || from.transaction >= number {
        return whole;
    }
    let mut keys = BTreeSet::new();
    let mut next = from.transaction + 1;
    for entry in entries.range(next..=number)? {
        let (at, entry) = entry?;
        let Some((_, changed)) = log::decode(entry.value()).filter(|_| at.value() == next) else {
            return whole;
        };
        keys.extend(changed);
        next += 1;
    }
    if next != number + 1 {
        return whole;
    }
    let marked = |mark| keys.iter().filter(move |key| key.1 == mark).map(|key| key.0);
    let (mut collections, dropped): (BTreeSet<u64>, BTreeSet<u64>) =
        (marked(RECORD).collect(), marked(DROPPED).collect());
    collections.retain(|number| !dropped.contains(number));
    keys.retain(|(collection, sequence)| *sequence < DROPPED && !dropped.contains(collection));
    Ok(Some((to, Plan::Keys { collections, dropped, items: keys.into_iter() })))
}
