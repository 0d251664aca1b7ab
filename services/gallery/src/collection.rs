use std::collections::HashMap;

use parking_lot::RwLock;
use prost::Message;
use thicket_engine::{EngineError, Hit, Similarity};
use thicket_index::{Build, CollectionIndex, Gathered, Recall, RecallMeter, Work};
use thicket_proto::v1;

use crate::check::describe_index;
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
    /// The indexer alone changes it.
    measured: RwLock<Option<Measured>>,
}

/// Recall, and of what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    pub(crate) recall: Recall,
    /// Items that there were.
    pub(crate) items: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) unix_ms: i64,
}

#[derive(Debug)]
struct State {
    /// Vectors by sequence number, so that equal scores come in insertion order.
    index: CollectionIndex,
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
        index: CollectionIndex,
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
            measured: RwLock::default(),
        }
    }

    pub(crate) fn version(&self) -> Version {
        self.state.read().version
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().items.len()
    }

    pub(crate) fn describe(&self) -> v1::Collection {
        let (items, kind, approximate) = {
            let state = self.state.read();
            (state.items.len() as u64, state.index.kind(), state.index.is_approximate())
        };
        let measured = self.measured.read().filter(|_| approximate);
        v1::Collection {
            name: self.name.clone(),
            model_fingerprint: self.model_fingerprint.clone(),
            dimension: self.dimension as u32,
            similarity: match self.similarity {
                Similarity::Cosine => v1::Similarity::Cosine,
                Similarity::MeanOfTwoCosines => v1::Similarity::MeanOfTwoCosines,
            } as i32,
            items,
            created_unix_ms: self.created_unix_ms,
            index: Some(describe_index(kind)),
            approximate,
            recall: measured.map(|measured| v1::Recall {
                at_10: measured.recall.at_10,
                at_100: measured.recall.at_100,
                queries: measured.recall.queries as u32,
                items: measured.items,
                measured_unix_ms: measured.unix_ms,
            }),
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
                Some(among) => state.index.exact().top_among(block, top, among),
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
        state.index.exact().scores(query, &sequences).map_err(engine_fault)
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
            None => state.index.exact().ranks(query, &sequences),
            Some(among) => state.index.exact().ranks_among(query, &sequences, &among),
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

    /// Writes a snapshot of the index and returns what it is of.
    pub(crate) fn save_snapshot(
        &self,
        path: &std::path::Path,
    ) -> Result<Snapshotted, thicket_index::SnapshotError> {
        let state = self.state.read();
        state.index.save(path, &state.version)?;
        Ok(state.snapshotted())
    }

    /// What a snapshot taken now would be of.
    pub(crate) fn snapshotted(&self) -> Snapshotted {
        self.state.read().snapshotted()
    }

    /// What is to be done for the index's structure.
    pub(crate) fn index_work(&self) -> Option<Work> {
        self.state.read().index.work()
    }

    /// Begins a new structure beside the index.
    pub(crate) fn begin_build(&self) -> Result<Build, EngineError> {
        Build::begin(&self.state.read().index)
    }

    /// The next vectors for a structure.
    pub(crate) fn gather(&self, build: &Build) -> Gathered {
        build.gather(&self.state.read().index)
    }

    /// Takes a new structure over.
    pub(crate) fn install(&self, build: Build) {
        self.state.write().index.install(build);
    }

    /// Brings a few vectors into the structure, or gives it up.
    pub(crate) fn keep_up(&self, work: Work) -> Result<(), EngineError> {
        let mut state = self.state.write();
        match work {
            Work::Fold => state.index.fold(),
            Work::GiveUp => {
                state.index.give_up();
                Ok(())
            }
            Work::Build => Err(EngineError::internal("index upkeep", "a build is made beside the index")),
        }
    }

    /// True while an approximate structure proposes candidates.
    pub(crate) fn is_approximate(&self) -> bool {
        self.state.read().index.is_approximate()
    }

    /// Vectors that recall is measured with.
    pub(crate) fn recall_sample(&self) -> Vec<u64> {
        RecallMeter::sample(&self.state.read().index)
    }

    /// Measures recall with one of them.
    pub(crate) fn measure_recall(&self, meter: &mut RecallMeter, sequence: u64) -> Result<(), EngineError> {
        meter.measure(&self.state.read().index, sequence)
    }

    /// What recall was found to be.
    pub(crate) fn measured(&self) -> Option<Measured> {
        *self.measured.read()
    }

    pub(crate) fn set_measured(&self, measured: Option<Measured>) {
        *self.measured.write() = measured;
    }
}

/// What a snapshot is of: a version of the data, and which of the structures that were made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshotted {
    pub(crate) version: Version,
    generation: u64,
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
    fn snapshotted(&self) -> Snapshotted {
        Snapshotted { version: self.version, generation: self.index.generation() }
    }

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
