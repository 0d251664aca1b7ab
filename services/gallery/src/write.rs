use crate::record::{CollectionRecord, ItemRecord};

/// One change of the store.
#[derive(Debug)]
pub(crate) enum Write {
    /// Creates a collection; `record.number` is chosen by the store.
    Create { name: String, record: CollectionRecord },
    /// Deletes a collection and all it holds; where `most` is given, that many of its items at most, oldest first, and the
    /// collection when none is left.
    Drop { name: String, most: Option<usize> },
    /// Adds or replaces an item.
    Put(Put),
    /// Deletes items; unknown ids are ignored.
    Delete { collection: String, ids: Vec<String> },
}

impl Write {
    /// True for what makes room in the end.
    pub(crate) fn frees(&self) -> bool {
        matches!(self, Self::Drop { .. } | Self::Delete { .. })
    }
}

/// An item to add or replace. A replaced item keeps its sequence number.
#[derive(Debug)]
pub(crate) struct Put {
    /// Name of the collection.
    pub(crate) collection: String,
    /// Number that the name stood for when the vector was checked against it.
    pub(crate) number: u64,
    /// The vector, of the collection's dimension, checked.
    pub(crate) vector: Vec<f32>,
    /// Everything else.
    pub(crate) item: ItemRecord,
}

/// What a [`Write`] did.
#[derive(Debug)]
pub(crate) enum Done {
    /// The collection as created; its version is that of the transaction.
    Created { record: CollectionRecord },
    /// The collection is gone, with so many items.
    Dropped { number: u64, items: u64 },
    /// The item is stored under its sequence number.
    Stored { sequence: u64 },
    /// These items are gone.
    Deleted { number: u64, sequences: Vec<u64> },
}
