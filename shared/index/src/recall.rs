//! How much of the exact ranking an approximate index finds.

use std::collections::HashSet;

use thicket_engine::EngineError;

use crate::CollectionIndex;

/// Vectors of a collection that are used as queries.
pub const RECALL_QUERIES: usize = 64;

/// Share of the exact ranking that was found, over a sample of the collection's own vectors as queries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Of the best 10, 0 to 1.
    pub at_10: f64,
    /// Of the best 100, 0 to 1.
    pub at_100: f64,
    /// Queries that it was measured with.
    pub queries: usize,
}

/// Measures recall query by query, so that the index is held for one of them at a time.
#[derive(Debug, Default)]
pub struct RecallMeter {
    queries: usize,
    found: [usize; 2],
    wanted: [usize; 2],
}

impl RecallMeter {
    const TOPS: [usize; 2] = [10, 100];

    /// The ids whose vectors are the queries: those with the smallest hashes, so that most of them stay the same as a
    /// collection grows.
    pub fn sample(index: &CollectionIndex) -> Vec<u64> {
        let mut hashed: Vec<(u64, u64)> = index.exact().ids().iter().map(|id| (mixed(*id), *id)).collect();
        if hashed.len() > RECALL_QUERIES {
            hashed.select_nth_unstable(RECALL_QUERIES);
            hashed.truncate(RECALL_QUERIES);
        }
        hashed.sort_unstable();
        hashed.into_iter().map(|(_, id)| id).collect()
    }

    /// Compares both rankings for the vector held under `id`; one that is held no more is passed over.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where FAISS fails.
    pub fn measure(&mut self, index: &CollectionIndex, id: u64) -> Result<(), EngineError> {
        let Some(query) = index.exact().vector(id) else { return Ok(()) };
        self.queries += 1;
        for (i, k) in Self::TOPS.into_iter().enumerate() {
            let exact: HashSet<u64> =
                index.exact().top(query, k)?.concat().iter().map(|hit| hit.id).collect();
            let found = index.top(query, k)?.concat();
            self.wanted[i] += exact.len();
            self.found[i] += found.iter().filter(|hit| exact.contains(&hit.id)).count();
        }
        Ok(())
    }

    /// What was found; `None` where nothing was measured.
    pub fn recall(&self) -> Option<Recall> {
        let share = |i: usize| self.found[i] as f64 / self.wanted[i] as f64;
        (self.queries > 0).then(|| Recall { at_10: share(0), at_100: share(1), queries: self.queries })
    }
}

/// The finaliser of SplitMix64.
fn mixed(id: u64) -> u64 {
    let mut x = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
