//! Searches among some of the vectors.

use thicket_engine::{EngineError, Hit, VectorIndex};

use crate::FaissIndex;
use crate::flat::{FETCH_MARGIN, best};
use crate::order::{dot, ranks_before};

/// One vector in so many must be among those searched for FAISS to be asked: it reads all vectors, a scan here reads
/// those searched alone.
const SPARSE: usize = 4;

/// The positions of the vectors that a search is limited to.
#[derive(Debug)]
pub(crate) struct Among {
    /// Each once.
    positions: Vec<usize>,
    /// A bit a vector of the index.
    bits: Vec<u64>,
}

impl Among {
    pub(crate) fn contains(&self, position: usize) -> bool {
        self.bits.get(position / 64).is_some_and(|word| word >> (position % 64) & 1 == 1)
    }
}

impl FaissIndex {
    /// The `k` best of the vectors held under `among` for each query: what [`Self::top`] would return if the index held
    /// those alone. Repeated ids count once.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] where `queries` is not whole rows or holds a value that is not finite, or an id is
    /// not held.
    pub fn top_among(&self, queries: &[f32], k: usize, among: &[u64]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let rows = self.check_rows("queries", queries)?;
        let among = self.among(among)?;
        let (held, searched) = (self.len(), among.positions.len());
        let k = k.min(searched);
        if k == 0 {
            return Ok(vec![Vec::new(); rows]);
        }
        // Where the vectors searched are as good as the others, `k` of them are among so many candidates.
        let expected = (k as u128 * held as u128 / searched as u128) as usize;
        let fetch = expected + expected / 4 + FETCH_MARGIN;
        if searched * SPARSE < held || fetch > held / 2 {
            let rankings = queries.chunks(self.dimension());
            return Ok(rankings.map(|query| best(self.hits_among(query, &among), k)).collect());
        }
        self.propose_and_settle(queries, k, fetch, Some(&among))
    }

    /// The 1-based place that each named vector has among those held under `among` in the ranking for one query, in the
    /// order of `ids`. A named vector that is not among them gets the place it would have.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a query that is not one finite row, or an id that is not held.
    pub fn ranks_among(&self, query: &[f32], ids: &[u64], among: &[u64]) -> Result<Vec<u64>, EngineError> {
        let targets = self.score_hits(query, ids)?;
        let among = self.among(among)?;
        let all = self.hits_among(query, &among);
        Ok(ranks_before(all, &targets).into_iter().map(|before| before + 1).collect())
    }

    pub(crate) fn hits_among(&self, query: &[f32], among: &Among) -> impl Iterator<Item = Hit> {
        let (data, ids) = (self.data(), self.ids());
        among
            .positions
            .iter()
            .map(move |position| Hit { id: ids[*position], score: dot(query, self.row(data, *position)) })
    }

    fn among(&self, ids: &[u64]) -> Result<Among, EngineError> {
        let mut among =
            Among { positions: Vec::with_capacity(ids.len()), bits: vec![0; self.len().div_ceil(64)] };
        for id in ids {
            let position = self.position(*id)?;
            if !among.contains(position) {
                among.bits[position / 64] |= 1 << (position % 64);
                among.positions.push(position);
            }
        }
        Ok(among)
    }
}
