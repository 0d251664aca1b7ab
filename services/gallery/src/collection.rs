use std::collections::HashMap;

use parking_lot::RwLock;
use prost::Message;
use thicket_engine::{EngineError, Hit, Similarity, VectorIndex};
use thicket_index::FaissIndex;
use thicket_proto::v1;

use crate::error::GalleryError;
use crate::facets::{Facets, Filter};
use crate::record::{CollectionRecord, ImageFormat, ImageHash, ItemRecord, Version};
use crate::write::Put;

/// A collection in memory: what the store holds, indexed for reading.
///
/// The writer thread changes it after the store's transaction is durable; readers see a change whole or not at all.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) model_fingerprint: String,
    pub(crate) dimension: usize,
    pub(crate) similarity: Similarity,
    pub(crate) created_unix_ms: i64,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    /// Vectors by sequence number, so that equal scores come in insertion order.
    index: FaissIndex,
    items: HashMap<u64, ItemRecord>,
    facets: Facets,
    sequences: HashMap<String, u64>,
    /// Images with the number of items that use each.
    images: HashMap<ImageHash, (ImageFormat, u64)>,
    version: Version,
}

/// An image to be read and served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageToServe {
    pub(crate) hash: ImageHash,
    pub(crate) format: ImageFormat,
}

impl Collection {
    /// Builds the view from what the store holds; `index` must hold a vector for each item.
    pub(crate) fn new(
        name: String,
        record: &CollectionRecord,
        items: Vec<(u64, ItemRecord)>,
        index: FaissIndex,
    ) -> Self {
        let mut state = State {
            index,
            items: HashMap::with_capacity(items.len()),
            facets: Facets::default(),
            sequences: HashMap::with_capacity(items.len()),
            images: HashMap::new(),
            version: record.version,
        };
        for (sequence, item) in items {
            state.insert(sequence, item);
        }
        Self {
            name,
            number: record.number,
            model_fingerprint: record.model_fingerprint.clone(),
            dimension: record.dimension,
            similarity: record.similarity.into(),
            created_unix_ms: record.created_unix_ms,
            state: RwLock::new(state),
        }
    }

    pub(crate) fn version(&self) -> Version {
        self.state.read().version
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().items.len()
    }

    pub(crate) fn describe(&self) -> v1::Collection {
        v1::Collection {
            name: self.name.clone(),
            model_fingerprint: self.model_fingerprint.clone(),
            dimension: self.dimension as u32,
            similarity: match self.similarity {
                Similarity::Cosine => v1::Similarity::Cosine,
                Similarity::MeanOfTwoCosines => v1::Similarity::MeanOfTwoCosines,
            } as i32,
            items: self.len() as u64,
            created_unix_ms: self.created_unix_ms,
        }
    }

    /// Takes over stored and deleted items of one transaction, in the order of its writes.
    pub(crate) fn take_over(&self, changes: Vec<Change>, version: Version) -> Result<(), GalleryError> {
        // The last change of each item is what counts.
        let mut last: HashMap<u64, Option<Box<Put>>> = HashMap::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Stored { sequence, put } => last.insert(sequence, Some(put)),
                Change::Deleted { sequence } => last.insert(sequence, None),
            };
        }
        let gone: Vec<u64> = last.keys().copied().collect();
        let (mut sequences, mut vectors) = (Vec::new(), Vec::new());
        let mut state = self.state.write();
        // All removals first: an id that was deleted and added again has two sequence numbers here.
        for sequence in &gone {
            state.remove(*sequence);
        }
        for (sequence, put) in last {
            if let Some(put) = put {
                sequences.push(sequence);
                vectors.extend_from_slice(&put.vector);
                state.insert(sequence, put.item);
            }
        }
        let failed = |cause: EngineError| GalleryError::internal("updating the index", cause);
        state.index.remove(&gone).map_err(failed)?;
        state.index.add(&sequences, &vectors).map_err(failed)?;
        state.version = version;
        Ok(())
    }

    /// Rankings of the items that `filter` holds for, for each of `queries` (row-major, checked), best first; refused
    /// where they take more than `limit` bytes.
    pub(crate) fn search(
        &self,
        queries: &[f32],
        top: usize,
        filter: Option<&Filter>,
        limit: usize,
    ) -> Result<Vec<v1::Ranking>, GalleryError> {
        /// Queries searched before their size is looked at.
        const QUERIES_AT_ONCE: usize = 64;
        let state = self.state.read();
        let among = state.among(filter);
        let mut bytes = 0;
        let mut rankings = Vec::new();
        for block in queries.chunks(QUERIES_AT_ONCE * self.dimension) {
            let found = match &among {
                None => state.index.top(block, top),
                Some(among) => state.index.top_among(block, top, among),
            };
            for hits in found.map_err(engine_fault)? {
                let ranking = state.ranking(&hits)?;
                bytes += ranking.encoded_len();
                if bytes > limit {
                    return Err(GalleryError::AnswerTooLarge { limit });
                }
                rankings.push(ranking);
            }
        }
        Ok(rankings)
    }

    /// Exact scores of named items.
    pub(crate) fn scores(&self, query: &[f32], ids: &[String]) -> Result<Vec<f32>, GalleryError> {
        let state = self.state.read();
        let sequences = state.sequences_of(&self.name, ids)?;
        state.index.scores(query, &sequences).map_err(engine_fault)
    }

    /// 1-based ranks of named items among those that `filter` holds for.
    pub(crate) fn ranks(
        &self,
        query: &[f32],
        ids: &[String],
        filter: Option<&Filter>,
    ) -> Result<Vec<u64>, GalleryError> {
        let state = self.state.read();
        let sequences = state.sequences_of(&self.name, ids)?;
        let ranks = match state.among(filter) {
            None => state.index.ranks(query, &sequences),
            Some(among) => state.index.ranks_among(query, &sequences, &among),
        };
        ranks.map_err(engine_fault)
    }

    pub(crate) fn item(&self, id: &str) -> Result<v1::Item, GalleryError> {
        let state = self.state.read();
        Ok(describe_item(state.item(&self.name, id)?))
    }

    /// The image of an item.
    pub(crate) fn image_of(&self, id: &str) -> Result<ImageToServe, GalleryError> {
        let state = self.state.read();
        let image = state.item(&self.name, id)?.image;
        let image = image.ok_or_else(|| GalleryError::UnknownImage {
            collection: self.name.clone(),
            image: id.to_owned(),
        })?;
        Ok(ImageToServe { hash: image.hash, format: image.format })
    }

    /// An image by its hash, if an item of this collection uses it.
    pub(crate) fn image(&self, hash: &ImageHash) -> Result<ImageToServe, GalleryError> {
        match self.state.read().images.get(hash) {
            Some((format, _)) => Ok(ImageToServe { hash: *hash, format: *format }),
            None => {
                Err(GalleryError::UnknownImage { collection: self.name.clone(), image: hash.to_string() })
            }
        }
    }

    /// True when an item of this collection uses the image.
    pub(crate) fn uses_image(&self, hash: &ImageHash) -> bool {
        self.state.read().images.contains_key(hash)
    }

    /// Writes a snapshot of the index and returns the version it is of.
    pub(crate) fn save_snapshot(
        &self,
        path: &std::path::Path,
    ) -> Result<Version, thicket_index::SnapshotError> {
        let state = self.state.read();
        state.index.save(path, &state.version)?;
        Ok(state.version)
    }
}

/// A durable change of one item, to be taken over by the view.
#[derive(Debug)]
pub(crate) enum Change {
    /// The item was added or replaced.
    Stored { sequence: u64, put: Box<Put> },
    /// The item was deleted.
    Deleted { sequence: u64 },
}

impl State {
    fn insert(&mut self, sequence: u64, item: ItemRecord) {
        if let Some(image) = item.image {
            self.images.entry(image.hash).or_insert((image.format, 0)).1 += 1;
        }
        self.facets.insert(sequence, &item.metadata);
        self.sequences.insert(item.id.clone(), sequence);
        self.items.insert(sequence, item);
    }

    fn remove(&mut self, sequence: u64) {
        let Some(item) = self.items.remove(&sequence) else {
            return;
        };
        self.facets.remove(sequence, &item.metadata);
        self.sequences.remove(&item.id);
        if let Some(image) = item.image
            && let Some((_, uses)) = self.images.get_mut(&image.hash)
        {
            *uses -= 1;
            if *uses == 0 {
                self.images.remove(&image.hash);
            }
        }
    }

    /// Sequence numbers of what a search is limited to; `None` for everything.
    fn among(&self, filter: Option<&Filter>) -> Option<Vec<u64>> {
        filter.and_then(|filter| self.facets.matching(filter))
    }

    fn item(&self, collection: &str, id: &str) -> Result<&ItemRecord, GalleryError> {
        self.sequences
            .get(id)
            .and_then(|sequence| self.items.get(sequence))
            .ok_or_else(|| unknown(collection, id))
    }

    fn sequences_of(&self, collection: &str, ids: &[String]) -> Result<Vec<u64>, GalleryError> {
        ids.iter().map(|id| self.sequences.get(id).copied().ok_or_else(|| unknown(collection, id))).collect()
    }

    fn ranking(&self, hits: &[Hit]) -> Result<v1::Ranking, GalleryError> {
        let hits = hits.iter().map(|hit| {
            let item = self.items.get(&hit.id).ok_or_else(|| {
                GalleryError::internal("search", format!("the index holds {}, which no item has", hit.id))
            })?;
            Ok(v1::Hit { item: Some(describe_item(item)), score: hit.score })
        });
        Ok(v1::Ranking { hits: hits.collect::<Result<_, GalleryError>>()? })
    }
}

/// An item as callers see it.
pub(crate) fn describe_item(item: &ItemRecord) -> v1::Item {
    v1::Item {
        id: item.id.clone(),
        image_hash: item.image.map(|image| image.hash.to_string()).unwrap_or_default(),
        metadata: item.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

fn unknown(collection: &str, id: &str) -> GalleryError {
    GalleryError::UnknownItem { collection: collection.to_owned(), id: id.to_owned() }
}

fn engine_fault(cause: EngineError) -> GalleryError {
    match cause {
        EngineError::InvalidInput { field, reason } => GalleryError::invalid(field, "INVALID_VECTOR", reason),
        cause @ (EngineError::Internal { .. } | EngineError::Unavailable { .. }) => {
            GalleryError::internal("search", cause)
        }
    }
}
