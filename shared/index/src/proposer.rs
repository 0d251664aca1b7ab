//! What proposes candidates where not every vector is compared.

use thicket_engine::{EngineError, Hit, VectorIndex};

use crate::flat::{FETCH_MARGIN, best};
use crate::native::Native;
use crate::order::dot;
use crate::{FaissIndex, IndexKind};

/// Vectors that are put into an index at a time. FAISS adds so few to a graph on one thread and in one order.
pub(crate) const GRAPH_BLOCK: usize = 64;
/// The same of an IVF index.
pub(crate) const LISTS_BLOCK: usize = 1024;

/// Candidates of all queries of one FAISS call.
const CANDIDATES_PER_CALL: usize = 1 << 20;

/// An approximate index over the vectors of an exact one, up to some stamp.
///
/// It is only ever added to. A vector that the exact index holds no more keeps its slot and is passed over; the vectors
/// from `until` on are compared one by one.
#[derive(Debug)]
pub(crate) struct Proposer {
    native: Native,
    /// Stamp of the vector in each slot, ascending.
    slots: Vec<u64>,
    /// All vectors held with a stamp below this one have a slot.
    until: u64,
    /// Vectors that there were when it was trained.
    trained_with: usize,
}

impl Proposer {
    /// An empty one, trained with `sample` where its kind asks for it.
    pub(crate) fn new(
        kind: IndexKind,
        dimension: usize,
        sample: &[f32],
        held: usize,
    ) -> Result<Self, EngineError> {
        let mut native = Native::new(kind, dimension)?;
        if matches!(kind, IndexKind::Ivf { .. }) {
            native.train(sample)?;
        }
        Ok(Self { native, slots: Vec::new(), until: 0, trained_with: held })
    }

    /// One whose slots hold the first `covered` vectors of `exact`.
    pub(crate) fn restored(native: Native, exact: &FaissIndex, covered: usize, trained_with: usize) -> Self {
        let slots: Vec<u64> = exact.stamps()[..covered].to_vec();
        let until = slots.last().map_or(0, |last| last + 1);
        Self { native, slots, until, trained_with }
    }

    pub(crate) fn native(&self) -> &Native {
        &self.native
    }

    pub(crate) fn trained_with(&self) -> usize {
        self.trained_with
    }

    pub(crate) fn until(&self) -> u64 {
        self.until
    }

    /// Slots, those of vectors that are gone included.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Adds vectors with their stamps, all of them later than those held.
    pub(crate) fn add(&mut self, stamps: &[u64], rows: &[f32]) -> Result<(), EngineError> {
        self.native.add(rows)?;
        self.slots.extend_from_slice(stamps);
        if let Some(last) = stamps.last() {
            self.until = last + 1;
        }
        Ok(())
    }

    /// The best of the proposed vectors and of those without a slot, `k` a query; `None` where there is nothing to gain over
    /// comparing all.
    pub(crate) fn top(
        &self,
        exact: &FaissIndex,
        queries: &[f32],
        k: usize,
    ) -> Result<Option<Vec<Vec<Hit>>>, EngineError> {
        let covered = exact.held_before(self.until);
        if covered == 0 {
            return Ok(None);
        }
        // Slots of vectors that are gone come back as well.
        let wanted = k + k / 8 + FETCH_MARGIN;
        let fetch = (wanted as u128 * self.slots.len() as u128).div_ceil(covered as u128) as usize;
        if fetch > covered / 2 {
            return Ok(None);
        }
        let dimension = exact.dimension();
        let mut rankings = Vec::with_capacity(queries.len() / dimension);
        for block in queries.chunks((CANDIDATES_PER_CALL / fetch).max(1) * dimension) {
            let places = self.native.search(block, fetch)?;
            for (query, places) in block.chunks(dimension).zip(places.chunks(fetch)) {
                rankings.push(self.settle(exact, query, places, covered, k));
            }
        }
        Ok(Some(rankings))
    }

    fn settle(
        &self,
        exact: &FaissIndex,
        query: &[f32],
        places: &[Option<usize>],
        covered: usize,
        k: usize,
    ) -> Vec<Hit> {
        let (data, ids, stamps) = (exact.data(), exact.ids(), exact.stamps());
        let hit = |position: usize| Hit { id: ids[position], score: dot(query, exact.row(data, position)) };
        let proposed = places.iter().flatten().filter_map(|place| {
            let stamp = self.slots.get(*place)?;
            stamps[..covered].binary_search(stamp).ok()
        });
        let hits = best(proposed.chain(covered..ids.len()).map(hit), k);
        if hits.len() < k.min(ids.len()) {
            // The lists that were read hold too few: as many as were asked for are promised.
            return best((0..ids.len()).map(hit), k);
        }
        hits
    }
}
