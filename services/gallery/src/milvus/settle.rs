//! Exact rankings out of what Milvus proposes.
//!
//! Milvus scores in f32, in an order of its own, and breaks ties by one of its own. Its candidates are scored again with the
//! inner product that the gallery on one machine uses, and put in the same order.

use std::collections::HashSet;

use thicket_engine::Hit;
use thicket_index::compare;

/// How many candidates to ask for where `k` are wanted: enough that rounding at the boundary is almost always settled.
pub(super) fn fetch(k: usize) -> usize {
    const MARGIN: usize = 32;
    k + k / 8 + MARGIN
}

/// The `k` best out of candidates that were scored again; `None` where a row that is not among them may belong there.
///
/// `worst` is Milvus's score of its last candidate, `bound` how far its scores may be from ours, and `all` says that there
/// were no more rows.
pub(super) fn settle(mut hits: Vec<Hit>, k: usize, worst: f32, bound: f64, all: bool) -> Option<Vec<Hit>> {
    hits.sort_unstable_by(compare);
    if !all {
        // A row that was left out scores at most this.
        let left_out = f64::from(worst) + bound;
        let last = k.checked_sub(1).and_then(|last| hits.get(last));
        if last.is_none_or(|last| left_out >= f64::from(last.score)) {
            return None;
        }
    }
    hits.truncate(k);
    Some(hits)
}

/// How far an inner product in f32, summed in any order, may be from ours: the classical bound for a sum of that many
/// products, times the norms, plus the rounding of ours.
pub(super) fn rounding_bound(dimension: usize, query: &[f32]) -> f64 {
    /// Longest vector that an item may have.
    const ITEM_NORM: f64 = 1.001;
    let norm = query.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let unit = f64::from(f32::EPSILON) / 2.0;
    let n = dimension as f64 * unit;
    (n / (1.0 - n) + 2.0 * unit) * norm * ITEM_NORM * 1.01 + dimension as f64 * f64::from(f32::MIN_POSITIVE)
}

/// The best of many hits, in bounded memory.
#[derive(Debug)]
pub(super) struct Best {
    k: usize,
    hits: Vec<Hit>,
}

impl Best {
    pub(super) fn of(k: usize) -> Self {
        Self { k, hits: Vec::new() }
    }

    pub(super) fn take(&mut self, hits: impl IntoIterator<Item = Hit>) {
        for hit in hits {
            self.hits.push(hit);
            if self.hits.len() >= 2 * self.k.max(512) {
                self.shrink();
            }
        }
    }

    /// What is held of them now.
    pub(super) fn held(&self) -> HashSet<u64> {
        self.hits.iter().map(|hit| hit.id).collect()
    }

    /// The best, in order.
    pub(super) fn in_order(mut self) -> Vec<Hit> {
        self.shrink();
        self.hits.sort_unstable_by(compare);
        self.hits
    }

    fn shrink(&mut self) {
        if self.k < self.hits.len() {
            self.hits.select_nth_unstable_by(self.k, compare);
            self.hits.truncate(self.k);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(all: &[Hit], k: usize) -> Vec<Hit> {
        let mut sorted = all.to_vec();
        sorted.sort_by(compare);
        sorted.truncate(k);
        sorted
    }

    fn hits(scores: &[i8]) -> Vec<Hit> {
        scores.iter().zip(0..).map(|(score, id)| Hit { id, score: f32::from(*score) / 8.0 }).collect()
    }

    proptest! {
        #[test]
        fn what_is_settled_is_the_plain_ranking(
            scores in prop::collection::vec(-8i8..8, 1..60),
            errors in prop::collection::vec(-0.09f32..0.09, 60),
            k in 1usize..20,
            fetch in 1usize..40,
        ) {
            let all = hits(&scores);
            // As somebody ranks them whose scores are off by less than the bound.
            let mut off: Vec<(f32, Hit)> = all.iter().zip(&errors).map(|(hit, error)| (hit.score + error, *hit)).collect();
            off.sort_by(|a, b| b.0.total_cmp(&a.0));
            off.truncate(fetch);
            let worst = off.last().unwrap().0;
            let candidates: Vec<Hit> = off.iter().map(|(_, hit)| *hit).collect();
            let complete = candidates.len() == all.len();
            match settle(candidates, k, worst, 0.1, complete) {
                Some(settled) => prop_assert_eq!(settled, plain(&all, k)),
                None => prop_assert!(!complete),
            }
        }

        #[test]
        fn the_best_of_many_are_the_plain_ranking(scores in prop::collection::vec(-8i8..8, 0..3000), k in 0usize..40) {
            let all = hits(&scores);
            let mut best = Best::of(k);
            all.chunks(7).for_each(|page| best.take(page.iter().copied()));
            prop_assert_eq!(best.in_order(), plain(&all, k));
        }
    }

    #[test]
    fn a_clear_boundary_is_settled() {
        let candidates = hits(&[8, 6, 4, 2]);
        assert_eq!(settle(candidates.clone(), 2, 0.25, 1e-6, false).unwrap(), candidates[..2]);
        assert_eq!(settle(candidates, 4, 0.25, 1e-6, false), None);
    }
}
