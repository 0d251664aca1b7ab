use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use faiss::index::flat::FlatIndex;
use faiss::index::{ConcurrentIndex, Idx, Index};
use faiss::selector::IdSelector;
use rayon::prelude::*;
use thicket_engine::{EngineError, Hit, VectorIndex};

use crate::among::Among;
use crate::native::{FEWEST_QUERIES_OF_A_PRODUCT, best_among, compare_by_products};
use crate::order::{compare, dot, ranks_before};

/// Longest vector an index takes.
pub const MAX_DIMENSION: usize = 16_384;

/// Candidates fetched beyond `k`, besides an eighth of `k`: enough that rounding at the boundary is almost always
/// settled without a second look at the whole index.
pub(crate) const FETCH_MARGIN: usize = 32;

/// Candidates of all queries of one FAISS call, a bound on its memory (12 bytes each).
const CANDIDATES_PER_CALL: usize = 1 << 20;

/// Fewest values that a thread compares a single query with.
const FEWEST_VALUES_OF_A_SHARE: usize = 1 << 18;
/// Shares for each thread: a core that is done takes over from a slower one.
const SHARES_PER_THREAD: usize = 4;

/// Above this product of norms an f32 sum inside FAISS could overflow; such queries are scored here instead.
const SAFE_NORM_PRODUCT: f64 = 1e30;

/// An exact inner-product index with unique 64-bit ids, on a flat FAISS index.
///
/// Results equal the plain algorithm (score everything with [`dot`], sort by score descending and id ascending, cut
/// at `k`) also where equal or nearly equal scores straddle the `k`-th place: FAISS proposes more candidates than
/// asked, their scores are computed again, and where the bound on FAISS's rounding error cannot exclude that it left
/// out a better vector, the whole index is scored.
///
/// Searches take `&self`; several threads may search at once.
pub struct FaissIndex {
    dimension: usize,
    inner: FlatIndex,
    /// Id of the vector at each FAISS position. FAISS keeps the order of the vectors that remain after a removal.
    ids: Vec<u64>,
    /// Inverse of `ids`.
    positions: HashMap<u64, usize>,
    /// Names the vector at each position among all that were ever added: ascending, and never used again, not even when
    /// another vector comes under the same id.
    stamps: Vec<u64>,
    next_stamp: u64,
    /// Upper bound on the Euclidean norm of every vector held.
    norm_bound: f64,
}

impl fmt::Debug for FaissIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaissIndex")
            .field("dimension", &self.dimension)
            .field("len", &self.ids.len())
            .finish()
    }
}

impl FaissIndex {
    /// An empty index for vectors of `dimension` values, 1 to [`MAX_DIMENSION`].
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a dimension out of range, [`EngineError::Internal`] where FAISS fails.
    pub fn new(dimension: usize) -> Result<Self, EngineError> {
        if dimension == 0 || dimension > MAX_DIMENSION {
            return Err(EngineError::invalid(
                "dimension",
                format!("{dimension} is not 1 to {MAX_DIMENSION}"),
            ));
        }
        compare_by_products();
        let inner = FlatIndex::new_ip(dimension as u32)
            .map_err(|cause| EngineError::internal("index creation", cause))?;
        Ok(Self {
            dimension,
            inner,
            ids: Vec::new(),
            positions: HashMap::new(),
            stamps: Vec::new(),
            next_stamp: 0,
            norm_bound: 0.0,
        })
    }

    /// True when a vector is held under `id`.
    pub fn contains(&self, id: u64) -> bool {
        self.positions.contains_key(&id)
    }

    /// The ids held, in the order in which their vectors were added.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// The vector held under `id`.
    pub fn vector(&self, id: u64) -> Option<&[f32]> {
        let position = *self.positions.get(&id)?;
        self.rows().nth(position)
    }

    /// The `k` best vectors of each query; see [`VectorIndex::search`].
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] where `queries` is not whole rows or holds a value that is not finite.
    pub fn top(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>, EngineError> {
        let rows = self.check_rows("queries", queries)?;
        let k = k.min(self.ids.len());
        if k == 0 {
            return Ok(vec![Vec::new(); rows]);
        }
        let fetch = self.ids.len().min(k + k / 8 + FETCH_MARGIN);
        self.propose_and_settle(queries, k, fetch, None)
    }

    /// Has FAISS propose `fetch` candidates for each query and makes exact rankings of `k` hits out of them.
    pub(crate) fn propose_and_settle(
        &self,
        queries: &[f32],
        k: usize,
        fetch: usize,
        among: Option<&Among>,
    ) -> Result<Vec<Vec<Hit>>, EngineError> {
        let rows_per_call = (CANDIDATES_PER_CALL / fetch).max(1);
        let mut rankings = Vec::with_capacity(queries.len() / self.dimension);
        for block in queries.chunks(rows_per_call * self.dimension) {
            let candidates = self.candidates(block, fetch)?;
            for (query, candidates) in block.chunks(self.dimension).zip(candidates) {
                rankings.push(self.settle(query, &candidates, k, among));
            }
        }
        Ok(rankings)
    }

    /// For each query the positions of the `fetch` vectors that FAISS finds best, with its scores. A place that it leaves empty has a
    /// position that there is none of.
    fn candidates(&self, queries: &[f32], fetch: usize) -> Result<Vec<Vec<(usize, f32)>>, EngineError> {
        let count = queries.len() / self.dimension;
        let shares = shares(self.ids.len(), self.dimension, rayon::current_num_threads());
        if count >= FEWEST_QUERIES_OF_A_PRODUCT || shares.len() == 1 {
            let found = ConcurrentIndex::search(&self.inner, queries, fetch)
                .map_err(|cause| EngineError::internal("index search", cause))?;
            let position = |label: &Idx| label.get().map_or(usize::MAX, |position| position as usize);
            let found: Vec<_> = found.labels.iter().map(position).zip(found.distances).collect();
            return Ok(found.chunks(fetch).map(<[_]>::to_vec).collect());
        }
        // FAISS compares a query with all vectors on one thread.
        let each = |query: &[f32]| {
            let found: Result<Vec<Vec<(usize, f32)>>, EngineError> =
                shares.par_iter().map(|share| best_among(&self.inner, share.clone(), query, fetch)).collect();
            let mut found = found?.concat();
            // The best of all are among the best of the shares, and what a share left out is no better than the worst of them.
            if found.len() > fetch {
                found.select_nth_unstable_by(fetch, |(_, a), (_, b)| b.total_cmp(a));
                found.truncate(fetch);
            }
            Ok(found)
        };
        queries.chunks(self.dimension).map(each).collect()
    }

    /// The inner product of one query with each named vector, in the order of `ids`.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a query that is not one finite row, or an id that is not held.
    pub fn scores(&self, query: &[f32], ids: &[u64]) -> Result<Vec<f32>, EngineError> {
        Ok(self.score_hits(query, ids)?.iter().map(|hit| hit.score).collect())
    }

    /// The 1-based place of each named vector in the full ranking for one query, in the order of `ids`.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a query that is not one finite row, or an id that is not held.
    pub fn ranks(&self, query: &[f32], ids: &[u64]) -> Result<Vec<u64>, EngineError> {
        let targets = self.score_hits(query, ids)?;
        let all = self.all_hits(query);
        Ok(ranks_before(all, &targets).into_iter().map(|before| before + 1).collect())
    }

    pub(crate) fn score_hits(&self, query: &[f32], ids: &[u64]) -> Result<Vec<Hit>, EngineError> {
        let rows = self.check_rows("query", query)?;
        if rows != 1 {
            return Err(EngineError::invalid("query", format!("{rows} vectors given, 1 expected")));
        }
        let data = self.data();
        ids.iter()
            .map(|id| {
                let position = self.position(*id)?;
                Ok(Hit { id: *id, score: dot(query, self.row(data, position)) })
            })
            .collect()
    }

    /// Turns FAISS's candidates for one query into the exact ranking of the `k` best (at least 1, and at most as many as
    /// there are), candidates outside `among` left aside.
    fn settle(
        &self,
        query: &[f32],
        candidates: &[(usize, f32)],
        k: usize,
        among: Option<&Among>,
    ) -> Vec<Hit> {
        let plainly = || match among {
            None => best(self.all_hits(query), k),
            Some(among) => best(self.hits_among(query, among), k),
        };
        let norms = norm(query) * self.norm_bound;
        let strange = |(position, score): &(usize, f32)| *position >= self.ids.len() || !score.is_finite();
        if norms > SAFE_NORM_PRODUCT || candidates.iter().any(strange) {
            return plainly();
        }
        let data = self.data();
        let chosen = candidates.iter().map(|(position, _)| *position);
        let chosen = chosen.filter(|position| among.is_none_or(|among| among.contains(*position)));
        let hit = |position| Hit { id: self.ids[position], score: dot(query, self.row(data, position)) };
        let mut hits: Vec<Hit> = chosen.map(hit).collect();
        if hits.len() < k {
            return plainly();
        }
        hits.sort_unstable_by(compare);
        if candidates.len() < self.ids.len() {
            // A vector that FAISS left out scores at most its worst candidate there, hence at most that plus the
            // two rounding errors here.
            let worst = candidates.iter().map(|(_, score)| *score).fold(f32::INFINITY, f32::min);
            let best_left_out = f64::from(worst) + self.rounding_bound(norms);
            if best_left_out >= f64::from(hits[k - 1].score) {
                return plainly();
            }
        }
        hits.truncate(k);
        hits
    }

    /// Upper bound on the difference between FAISS's f32 score and [`dot`]: the classical `n u / (1 - n u)` bound for
    /// a sum of n products in any order, times the product of the norms, plus the rounding of [`dot`] itself.
    fn rounding_bound(&self, norms: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) / 2.0;
        let n = self.dimension as f64 * unit;
        // Products below the smallest normal f32 lose an absolute amount instead.
        let underflow = self.dimension as f64 * f64::from(f32::MIN_POSITIVE);
        (n / (1.0 - n) + 2.0 * unit) * norms * 1.01 + underflow
    }

    /// Where the vector of an id is.
    pub(crate) fn position(&self, id: u64) -> Result<usize, EngineError> {
        let held = self.positions.get(&id).copied();
        held.ok_or_else(|| EngineError::invalid("ids", format!("no vector is held under id {id}")))
    }

    fn all_hits(&self, query: &[f32]) -> impl Iterator<Item = Hit> {
        self.ids.iter().zip(self.rows()).map(move |(id, row)| Hit { id: *id, score: dot(query, row) })
    }

    /// All vectors, row-major, in the order of [`Self::ids`].
    pub(crate) fn data(&self) -> &[f32] {
        // FAISS hands out a null pointer for an empty index, of which no slice may be made.
        if self.ids.is_empty() { &[] } else { self.inner.xb() }
    }

    /// Stamps of the vectors held, ascending.
    pub(crate) fn stamps(&self) -> &[u64] {
        &self.stamps
    }

    /// How many of the vectors held, from the first, have a stamp below `stamp`.
    pub(crate) fn held_before(&self, stamp: u64) -> usize {
        self.stamps.partition_point(|held| *held < stamp)
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data().chunks_exact(self.dimension)
    }

    pub(crate) fn row<'a>(&self, data: &'a [f32], position: usize) -> &'a [f32] {
        &data[position * self.dimension..(position + 1) * self.dimension]
    }

    /// Checks that `values` is whole rows of finite values; returns the number of rows.
    pub(crate) fn check_rows(&self, field: &'static str, values: &[f32]) -> Result<usize, EngineError> {
        if !values.len().is_multiple_of(self.dimension) {
            let reason = format!("{} values are not whole vectors of {}", values.len(), self.dimension);
            return Err(EngineError::invalid(field, reason));
        }
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let reason = format!(
                "value {} of vector {} is {}",
                place % self.dimension,
                place / self.dimension,
                values[place]
            );
            return Err(EngineError::invalid(field, reason));
        }
        Ok(values.len() / self.dimension)
    }
}

impl VectorIndex for FaissIndex {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn add(&mut self, ids: &[u64], vectors: &[f32]) -> Result<(), EngineError> {
        let rows = self.check_rows("vectors", vectors)?;
        if rows != ids.len() {
            return Err(EngineError::invalid("ids", format!("{} ids for {rows} vectors", ids.len())));
        }
        let mut fresh = HashSet::with_capacity(ids.len());
        for id in ids {
            if self.positions.contains_key(id) || !fresh.insert(*id) {
                return Err(EngineError::invalid("ids", format!("id {id} is held already or given twice")));
            }
        }
        if rows == 0 {
            return Ok(());
        }
        self.inner.add(vectors).map_err(|cause| EngineError::internal("index insertion", cause))?;
        for (id, row) in ids.iter().zip(vectors.chunks_exact(self.dimension)) {
            self.positions.insert(*id, self.ids.len());
            self.ids.push(*id);
            self.stamps.push(self.next_stamp);
            self.next_stamp += 1;
            self.norm_bound = self.norm_bound.max(norm(row));
        }
        Ok(())
    }

    fn remove(&mut self, ids: &[u64]) -> Result<usize, EngineError> {
        let held: HashSet<usize> = ids.iter().filter_map(|id| self.positions.get(id).copied()).collect();
        let Some(first) = held.iter().min().copied() else {
            return Ok(0);
        };
        let fail = |cause| EngineError::internal("index removal", cause);
        if held.len() == self.ids.len() {
            self.inner.reset().map_err(fail)?;
            self.norm_bound = 0.0;
        } else {
            let labels: Vec<Idx> = held.iter().map(|position| Idx::new(*position as u64)).collect();
            let selector = IdSelector::batch(&labels).map_err(fail)?;
            self.inner.remove_ids(&selector).map_err(fail)?;
        }
        for position in &held {
            self.positions.remove(&self.ids[*position]);
        }
        retain_unless(&mut self.ids, &held);
        retain_unless(&mut self.stamps, &held);
        for (position, id) in self.ids.iter().enumerate().skip(first) {
            self.positions.insert(*id, position);
        }
        Ok(held.len())
    }

    fn search(&mut self, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>, EngineError> {
        self.top(queries, k)
    }
}

/// How so many vectors are shared out to threads: in even shares, one where there are few.
fn shares(vectors: usize, dimension: usize, threads: usize) -> Vec<Range<usize>> {
    let most = (vectors * dimension / FEWEST_VALUES_OF_A_SHARE).max(1);
    let count = if threads == 1 { 1 } else { most.min(threads * SHARES_PER_THREAD) };
    (0..count).map(|share| share * vectors / count..(share + 1) * vectors / count).collect()
}

/// Drops what is at the given positions.
fn retain_unless(values: &mut Vec<u64>, gone: &HashSet<usize>) {
    let mut position = 0;
    values.retain(|_| {
        position += 1;
        !gone.contains(&(position - 1))
    });
}

/// The plain algorithm: the `k` best of all hits, in order.
pub(crate) fn best(hits: impl Iterator<Item = Hit>, k: usize) -> Vec<Hit> {
    let mut hits: Vec<Hit> = hits.collect();
    if k < hits.len() {
        hits.select_nth_unstable_by(k, compare);
        hits.truncate(k);
    }
    hits.sort_unstable_by(compare);
    hits
}

/// Euclidean norm.
fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}
