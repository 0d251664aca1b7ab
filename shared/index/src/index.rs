use std::path::Path;

use thicket_engine::{EngineError, Hit, VectorIndex};

use crate::proposer::{GRAPH_BLOCK, LISTS_BLOCK, Proposer};
use crate::snapshot::{self, SnapshotError, TAG_BYTES};
use crate::{FaissIndex, IndexKind};

/// Vectors that are compared one by one before some are put into the approximate index.
const FOLD_AT: usize = 256;
/// A graph takes so many of them while nobody can search.
const FOLD_GRAPH: usize = 32;
/// An IVF index is trained again when there are so many times the vectors.
pub const GROWTH: usize = 2;
/// An approximate index is built again when one in so many of its slots is of a vector that is gone.
pub const GONE: usize = 4;
/// Vectors a list that an IVF index is trained from.
const TRAINED_PER_LIST: usize = 64;

/// The vectors of a collection, with an index of any kind over them.
///
/// Every vector is held in an exact index, which answers for scores, ranks and filters. An approximate kind adds a
/// structure that proposes candidates for [`Self::top`]; the caller builds it beside the index and keeps it up, as
/// [`Self::work`] says, and until then every vector is compared.
#[derive(Debug)]
pub struct CollectionIndex {
    exact: FaissIndex,
    kind: IndexKind,
    proposer: Option<Proposer>,
    /// Counts the structures that were put in or given up.
    generation: u64,
}

/// What is to be done for the approximate structure of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A new one: see [`Build`].
    Build,
    /// [`CollectionIndex::fold`].
    Fold,
    /// [`CollectionIndex::give_up`]: too few vectors are left for it.
    GiveUp,
}

/// A new approximate structure, made beside the index that it is for.
///
/// Reading the index and computing alternate, so that nobody has to wait for the computing: [`Self::begin`], [`Self::train`],
/// then [`Self::gather`] and [`Self::insert`] until nothing more comes, then [`CollectionIndex::install`].
#[derive(Debug)]
pub struct Build {
    kind: IndexKind,
    dimension: usize,
    held: usize,
    sample: Vec<f32>,
    proposer: Option<Proposer>,
}

/// Vectors on their way into a [`Build`].
#[derive(Debug)]
pub struct Gathered {
    stamps: Vec<u64>,
    rows: Vec<f32>,
}

impl Gathered {
    /// True where the structure has all vectors but a few.
    pub fn is_last(&self) -> bool {
        self.stamps.len() < FOLD_AT
    }
}

impl Build {
    /// Takes a sample of the vectors to train with: evenly spaced, so that the same vectors give the same structure.
    ///
    /// # Errors
    /// [`EngineError::Internal`] for an exact index.
    pub fn begin(index: &CollectionIndex) -> Result<Self, EngineError> {
        let (kind, dimension, held) = (index.kind, index.exact.dimension(), index.exact.len());
        let wanted = match kind {
            IndexKind::Exact => {
                return Err(EngineError::internal("index build", "an exact index has no structure"));
            }
            IndexKind::Ivf { lists, .. } => (TRAINED_PER_LIST * lists as usize).min(held),
            IndexKind::Hnsw { .. } => 0,
        };
        let data = index.exact.data();
        let mut sample = Vec::with_capacity(wanted * dimension);
        for number in 0..wanted {
            let position = (number as u128 * held as u128 / wanted as u128) as usize;
            sample.extend_from_slice(index.exact.row(data, position));
        }
        Ok(Self { kind, dimension, held, sample, proposer: None })
    }

    /// Trains the structure.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where FAISS fails.
    pub fn train(&mut self) -> Result<(), EngineError> {
        let sample = std::mem::take(&mut self.sample);
        self.proposer = Some(Proposer::new(self.kind, self.dimension, &sample, self.held)?);
        Ok(())
    }

    /// Copies the next vectors out of the index, which may have changed since the last time.
    pub fn gather(&self, index: &CollectionIndex) -> Gathered {
        let most = FOLD_AT.max(block(self.kind));
        index.copy(self.proposer.as_ref().map_or(0, Proposer::until), most)
    }

    /// Puts vectors in.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where FAISS fails.
    pub fn insert(&mut self, gathered: &Gathered) -> Result<(), EngineError> {
        let Some(proposer) = &mut self.proposer else {
            return Err(EngineError::internal("index build", "it is not trained"));
        };
        let size = block(self.kind);
        for (stamps, rows) in gathered.stamps.chunks(size).zip(gathered.rows.chunks(size * self.dimension)) {
            proposer.add(stamps, rows)?;
        }
        Ok(())
    }
}

fn block(kind: IndexKind) -> usize {
    if matches!(kind, IndexKind::Hnsw { .. }) { GRAPH_BLOCK } else { LISTS_BLOCK }
}

impl CollectionIndex {
    /// An empty index for vectors of `dimension` values, 1 to [`crate::MAX_DIMENSION`].
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a dimension or a parameter of the kind out of range, [`EngineError::Internal`] where
    /// FAISS fails.
    pub fn new(dimension: usize, kind: IndexKind) -> Result<Self, EngineError> {
        kind.check().map_err(|error| EngineError::invalid("index", error.to_string()))?;
        Ok(Self { exact: FaissIndex::new(dimension)?, kind, proposer: None, generation: 0 })
    }

    /// How it searches.
    pub fn kind(&self) -> IndexKind {
        self.kind
    }

    /// The same vectors, every one of which is compared.
    pub fn exact(&self) -> &FaissIndex {
        &self.exact
    }

    /// True where an approximate structure proposes candidates.
    pub fn is_approximate(&self) -> bool {
        self.proposer.is_some()
    }

    /// Counts the structures that were put in or given up so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// True where the structure still has vectors that are held no more.
    pub fn remembers_removed(&self) -> bool {
        self.proposer
            .as_ref()
            .is_some_and(|proposer| proposer.slots() > self.exact.held_before(proposer.until()))
    }

    /// Number of vectors held.
    pub fn len(&self) -> usize {
        self.exact.len()
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty()
    }

    /// True when a vector is held under `id`.
    pub fn contains(&self, id: u64) -> bool {
        self.exact.contains(id)
    }

    /// Adds vectors; see [`VectorIndex::add`].
    ///
    /// # Errors
    /// As there.
    pub fn add(&mut self, ids: &[u64], vectors: &[f32]) -> Result<(), EngineError> {
        self.exact.add(ids, vectors)
    }

    /// Removes vectors; see [`VectorIndex::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(&mut self, ids: &[u64]) -> Result<usize, EngineError> {
        self.exact.remove(ids)
    }

    /// The `k` best vectors of each query, score descending, then id ascending: among those that the structure proposes where
    /// there is one, else among all. Fewer than `k` come back only where fewer are held.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] where `queries` is not whole rows or holds a value that is not finite.
    pub fn top(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>, EngineError> {
        self.exact.check_rows("queries", queries)?;
        if let Some(proposer) = &self.proposer
            && k > 0
            && let Some(rankings) = proposer.top(&self.exact, queries, k)?
        {
            return Ok(rankings);
        }
        self.exact.top(queries, k)
    }

    /// What is to be done for the structure; `None` where it is as it should be.
    pub fn work(&self) -> Option<Work> {
        let needed = self.kind.vectors_needed()?;
        let held = self.exact.len();
        let Some(proposer) = &self.proposer else {
            return (held >= needed).then_some(Work::Build);
        };
        let covered = self.exact.held_before(proposer.until());
        let gone = proposer.slots() - covered;
        let outgrown =
            matches!(self.kind, IndexKind::Ivf { .. }) && held >= GROWTH * proposer.trained_with().max(1);
        if gone * GONE > proposer.slots() || outgrown {
            return Some(if held >= needed { Work::Build } else { Work::GiveUp });
        }
        (held - covered >= FOLD_AT).then_some(Work::Fold)
    }

    /// Puts a few of the vectors that are compared one by one into the structure.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where FAISS fails; the structure is given up then.
    pub fn fold(&mut self) -> Result<(), EngineError> {
        let Some(mut proposer) = self.proposer.take() else { return Ok(()) };
        let most = if matches!(self.kind, IndexKind::Hnsw { .. }) { FOLD_GRAPH } else { LISTS_BLOCK };
        let Gathered { stamps, rows } = self.copy(proposer.until(), most);
        self.generation += 1;
        proposer.add(&stamps, &rows)?;
        self.proposer = Some(proposer);
        Ok(())
    }

    /// Takes a new structure over.
    pub fn install(&mut self, build: Build) {
        self.proposer = build.proposer;
        self.generation += 1;
    }

    /// Compares every vector from now on.
    pub fn give_up(&mut self) {
        self.proposer = None;
        self.generation += 1;
    }

    /// Writes vectors, ids and structure to `path`, whole or not at all. A structure that remembers removed vectors is left
    /// out, so that they are in no file; it is built again after the next load.
    ///
    /// `tag` names the state of the data that the index was built from; [`Self::load`] asks for it again. All numbers
    /// in the file are little-endian; a BLAKE3 checksum of everything before it ends the file.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] or [`SnapshotError::Index`]; an older snapshot at `path` is then left as it was.
    pub fn save(&self, path: &Path, tag: &[u8; TAG_BYTES]) -> Result<(), SnapshotError> {
        let whole = self.proposer.as_ref().filter(|_| !self.remembers_removed());
        snapshot::save(&self.exact, self.kind, whole, path, tag)
    }

    /// Reads a snapshot that [`Self::save`] wrote with the same `tag`.
    ///
    /// The file is verified to its last byte (length, checksum, unique ids, finite values) before an index comes back.
    ///
    /// # Errors
    /// [`SnapshotError::Stale`] where the tag differs, [`SnapshotError::Damaged`] where the bytes do not fit or are of another
    /// kind, [`SnapshotError::Io`] where the file cannot be read.
    pub fn load(
        path: &Path,
        dimension: usize,
        kind: IndexKind,
        tag: &[u8; TAG_BYTES],
    ) -> Result<Self, SnapshotError> {
        let (exact, proposer) = snapshot::load(path, dimension, kind, tag)?;
        Ok(Self { exact, kind, proposer, generation: 0 })
    }

    /// At most `most` vectors from the stamp `from` on.
    fn copy(&self, from: u64, most: usize) -> Gathered {
        let first = self.exact.held_before(from);
        let last = (first + most).min(self.exact.len());
        let dimension = self.exact.dimension();
        Gathered {
            stamps: self.exact.stamps()[first..last].to_vec(),
            rows: self.exact.data()[first * dimension..last * dimension].to_vec(),
        }
    }
}
