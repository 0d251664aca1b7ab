//! Re-ranking a refined query (Eq. 6 of the ICL paper, CVPR 2025).
//!
//! `score(v) = lambda * S(q, v) + (1 - lambda) * S'(q', v)`, where `q'` is the rewritten text and `S'` is the
//! similarity but for one image, whose `S'` is 1. Two forms, which rank alike:
//!
//! - [`rerank`]: over whole matrices, as the paper has it.
//! - [`mix_queries`], [`forced_score`] and [`place_anchor`]: one search. The mix is linear in the query, so searching
//!   with `lambda * q + (1 - lambda) * q'` gives every score but the anchor's, which is computed on its own and put
//!   in place.

use crate::ranking::{self, Scored};

/// Which image is given the similarity 1 to the rewritten text.
///
/// The paper prints the best candidate; the authors' code uses the anchor. They coincide for anchors confirmed in
/// round 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forced {
    /// The confirmed candidate.
    #[default]
    Anchor,
    /// The best candidate of the first ranking.
    BestCandidate,
}

/// Inputs of [`rerank`] or [`mix_queries`] that do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum FusionError {
    /// An input has the wrong number of values.
    #[error("{field} has {actual} values, {expected} expected")]
    Length {
        /// `similarity`, `refined`, `anchors`, `rewritten query`, ...
        field: &'static str,
        /// Values expected.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// An anchor that is not in the gallery.
    #[error("anchors[{query}] is {actual}, but the gallery has {gallery} images")]
    Anchor {
        /// Row, from 0.
        query: usize,
        /// The anchor given.
        actual: usize,
        /// Images in the gallery.
        gallery: usize,
    },
    /// lambda is NaN or outside 0 to 1.
    #[error("lambda must be 0 to 1, not {actual}")]
    Lambda {
        /// What was given.
        actual: f64,
    },
    /// A similarity is NaN.
    #[error("{field}[{query}, {gallery}] is not a number")]
    NotANumber {
        /// `similarity` or `refined`.
        field: &'static str,
        /// Row, from 0.
        query: usize,
        /// Column, from 0.
        gallery: usize,
    },
}

/// Eq. 6 over matrices. Rows without an anchor come back as they were.
///
/// - `similarity`: `S(q, v)`, f32, row-major `[anchors.len(), gallery]`.
/// - `refined`: `S(q', v)`, same shape; rows without an anchor are ignored and may hold anything.
/// - `anchors`: gallery index per query, `None` where the query was not refined.
/// - `lambda`: weight of the original query, 0 to 1.
///
/// The weights are rounded to f32 and the sum is done in f32, as the authors' code does.
///
/// # Errors
/// [`FusionError`] where shapes disagree, an anchor is outside the gallery, a used value is NaN or lambda is out of
/// range.
pub fn rerank(
    similarity: &[f32],
    refined: &[f32],
    gallery: usize,
    anchors: &[Option<usize>],
    lambda: f64,
    forced: Forced,
) -> Result<Vec<f32>, FusionError> {
    let expected = anchors.len().saturating_mul(gallery);
    for (field, values) in [("similarity", similarity), ("refined", refined)] {
        if values.len() != expected {
            return Err(FusionError::Length { field, expected, actual: values.len() });
        }
    }
    let (original_weight, refined_weight) = weights(lambda)?;

    let mut fused = similarity.to_vec();
    for (query, anchor) in anchors.iter().enumerate() {
        let cells = query * gallery..(query + 1) * gallery;
        let (base, other) = (&similarity[cells.clone()], &refined[cells.clone()]);
        check_row("similarity", query, base)?;
        let Some(anchor) = *anchor else { continue };
        if anchor >= gallery {
            return Err(FusionError::Anchor { query, actual: anchor, gallery });
        }
        check_row("refined", query, other)?;
        let forced_image = match forced {
            Forced::Anchor => anchor,
            Forced::BestCandidate => best(base),
        };
        for (image, score) in fused[cells].iter_mut().enumerate() {
            let to_refined = if image == forced_image { 1.0 } else { other[image] };
            *score = original_weight * base[image] + refined_weight * to_refined;
        }
    }
    Ok(fused)
}

/// The query that searches for both texts at once: `lambda * original + (1 - lambda) * rewritten`. It is not of unit
/// length, which is intended: its inner products are the mixed scores.
///
/// # Errors
/// [`FusionError`] where the vectors differ in length or lambda is out of range.
pub fn mix_queries(original: &[f32], rewritten: &[f32], lambda: f64) -> Result<Vec<f32>, FusionError> {
    if original.len() != rewritten.len() {
        return Err(FusionError::Length {
            field: "rewritten query",
            expected: original.len(),
            actual: rewritten.len(),
        });
    }
    let (original_weight, rewritten_weight) = weights(lambda)?;
    Ok(original
        .iter()
        .zip(rewritten)
        .map(|(before, after)| original_weight * before + rewritten_weight * after)
        .collect())
}

/// The score of the image whose similarity to the rewritten text is set to 1: `lambda * similarity + (1 - lambda)`,
/// where `similarity` is its similarity to the original text.
///
/// # Errors
/// [`FusionError::Lambda`] where lambda is out of range.
pub fn forced_score(similarity: f32, lambda: f64) -> Result<f32, FusionError> {
    let (original_weight, refined_weight) = weights(lambda)?;
    Ok(original_weight * similarity + refined_weight)
}

/// Puts the anchor, with its own score, into the result of a search with the mixed query and cuts it to `limit`.
///
/// The result equals the beginning of the whole re-ranked gallery if `hits` are the `limit + 1` best items (or all of
/// them) in any order: one of them may be the anchor itself under its unforced score, which is dropped.
pub fn place_anchor<Id: Ord>(mut hits: Vec<Scored<Id>>, anchor: Scored<Id>, limit: usize) -> Vec<Scored<Id>> {
    hits.retain(|hit| hit.id != anchor.id);
    hits.push(anchor);
    hits.sort_by(|left, right| ranking::compare((left.score, &left.id), (right.score, &right.id)));
    hits.truncate(limit);
    hits
}

/// The stored vector of a model whose similarity is the mean of two cosines: `[bge, tse] / sqrt(2)`, for images and
/// texts alike. With both parts of unit length, the inner product of two such vectors is the mean of the two cosines,
/// and the vector has unit length itself.
pub fn join_towers(bge: &[f32], tse: &[f32]) -> Vec<f32> {
    bge.iter().chain(tse).map(|value| value * std::f32::consts::FRAC_1_SQRT_2).collect()
}

/// lambda and its complement, each rounded to f32 once.
fn weights(lambda: f64) -> Result<(f32, f32), FusionError> {
    if !(0.0..=1.0).contains(&lambda) {
        return Err(FusionError::Lambda { actual: lambda });
    }
    Ok((lambda as f32, (1.0 - lambda) as f32))
}

fn check_row(field: &'static str, query: usize, row: &[f32]) -> Result<(), FusionError> {
    match row.iter().position(|value| value.is_nan()) {
        Some(gallery) => Err(FusionError::NotANumber { field, query, gallery }),
        None => Ok(()),
    }
}

/// Position of the best value of a row without NaN, the first of equals; 0 for an empty row.
fn best(row: &[f32]) -> usize {
    (0..row.len()).min_by(|a, b| ranking::compare((row[*a], a), (row[*b], b))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOLERANCE: f32 = 2e-6;

    fn dot(left: &[f32], right: &[f32]) -> f32 {
        left.iter().zip(right).map(|(a, b)| a * b).sum()
    }

    fn unit(dimension: usize) -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(-1.0f32..1.0, dimension)
            .prop_filter("too short to normalise", |vector| dot(vector, vector) > 1e-2)
            .prop_map(|vector| {
                let length = dot(&vector, &vector).sqrt();
                vector.into_iter().map(|value| value / length).collect()
            })
    }

    /// True where rounding cannot explain that `left` scores above `right`.
    fn clearly_above(left: f32, right: f32) -> bool {
        left > right + TOLERANCE
    }

    #[test]
    fn the_anchor_gets_similarity_one_and_other_rows_stay() {
        let fused = rerank(
            &[0.5, 0.25, 0.5, 0.25],
            &[0.0, 0.5, f32::NAN, f32::NAN],
            2,
            &[Some(0), None],
            0.75,
            Forced::Anchor,
        );
        assert_eq!(fused.unwrap(), [0.625, 0.3125, 0.5, 0.25]);
    }

    #[test]
    fn the_paper_s_reading_forces_the_best_candidate_instead() {
        let forced = |forced| rerank(&[0.5, 0.25], &[0.0, 0.0], 2, &[Some(1)], 0.5, forced).unwrap();
        assert_eq!(forced(Forced::Anchor), [0.25, 0.625]);
        assert_eq!(forced(Forced::BestCandidate), [0.75, 0.125]);
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let refused = |s: &[f32], r: &[f32], anchor, lambda| {
            rerank(s, r, 2, &[Some(anchor)], lambda, Forced::Anchor).unwrap_err()
        };
        assert!(matches!(refused(&[0.0; 3], &[0.0; 2], 0, 0.8), FusionError::Length { actual: 3, .. }));
        assert!(matches!(refused(&[0.0; 2], &[0.0; 2], 2, 0.8), FusionError::Anchor { actual: 2, .. }));
        assert!(matches!(refused(&[0.0; 2], &[0.0; 2], 0, 1.5), FusionError::Lambda { .. }));
        assert!(matches!(refused(&[0.0; 2], &[0.0; 2], 0, f64::NAN), FusionError::Lambda { .. }));
        assert!(matches!(
            refused(&[0.0; 2], &[0.0, f32::NAN], 0, 0.8),
            FusionError::NotANumber { field: "refined", query: 0, gallery: 1 }
        ));
        assert!(mix_queries(&[1.0], &[1.0, 0.0], 0.5).is_err());
    }

    #[test]
    fn an_anchor_outside_the_results_is_inserted() {
        let hits = vec![Scored { id: 4, score: 0.9 }, Scored { id: 2, score: 0.5 }];
        let placed = place_anchor(hits, Scored { id: 7, score: 0.7 }, 2);
        assert_eq!(placed.iter().map(|hit| hit.id).collect::<Vec<_>>(), [4, 7]);
    }

    #[test]
    fn an_anchor_inside_the_results_is_replaced_not_doubled() {
        let hits = vec![Scored { id: 4, score: 0.9 }, Scored { id: 2, score: 0.5 }];
        let placed = place_anchor(hits, Scored { id: 2, score: 0.9 }, 5);
        assert_eq!(placed.iter().map(|hit| hit.id).collect::<Vec<_>>(), [2, 4]);
    }

    proptest! {
        #[test]
        fn one_search_with_the_mixed_query_ranks_like_the_matrix_form(
            images in proptest::collection::vec(unit(6), 1..24),
            original in unit(6),
            rewritten in unit(6),
            lambda in 0.0f64..=1.0,
            pick in any::<prop::sample::Index>(),
            limit in 1usize..30,
        ) {
            let anchor = pick.index(images.len());
            let row = |query: &[f32]| images.iter().map(|image| dot(query, image)).collect::<Vec<_>>();
            let (base, refined) = (row(&original), row(&rewritten));
            let fused =
                rerank(&base, &refined, images.len(), &[Some(anchor)], lambda, Forced::Anchor).unwrap();

            let mixed = row(&mix_queries(&original, &rewritten, lambda).unwrap());
            let hits = ranking::top(&mixed, limit + 1).unwrap();
            let hits = hits.into_iter().map(|id| Scored { id, score: mixed[id] }).collect();
            let score = forced_score(base[anchor], lambda).unwrap();
            let placed = place_anchor(hits, Scored { id: anchor, score }, limit);

            prop_assert_eq!(placed.len(), limit.min(images.len()));
            for hit in &placed {
                prop_assert!((hit.score - fused[hit.id]).abs() < TOLERANCE);
            }
            for pair in placed.windows(2) {
                prop_assert!(!clearly_above(fused[pair[1].id], fused[pair[0].id]));
            }
            // Nothing that was left out beats what is in.
            let last = placed.last().unwrap();
            for image in (0..images.len()).filter(|image| placed.iter().all(|hit| hit.id != *image)) {
                prop_assert!(!clearly_above(fused[image], fused[last.id]));
            }
        }

        #[test]
        fn without_rounding_both_forms_give_the_same_ranking(
            cells in proptest::collection::vec((-8i8..8, -8i8..8), 1..24),
            eighths in 0u8..=8,
            pick in any::<prop::sample::Index>(),
            limit in 1usize..30,
        ) {
            // Small multiples of 1/8 make every product and sum exact, ties included.
            let (base, refined): (Vec<f32>, Vec<f32>) =
                cells.iter().map(|&(a, b)| (f32::from(a) / 8.0, f32::from(b) / 8.0)).unzip();
            let lambda = f64::from(eighths) / 8.0;
            let anchor = pick.index(cells.len());
            let fused =
                rerank(&base, &refined, cells.len(), &[Some(anchor)], lambda, Forced::Anchor).unwrap();
            let mixed = mix_queries(&base, &refined, lambda).unwrap();
            let hits = ranking::top(&mixed, limit + 1).unwrap();
            let hits = hits.into_iter().map(|id| Scored { id, score: mixed[id] }).collect();
            let score = forced_score(base[anchor], lambda).unwrap();
            let placed = place_anchor(hits, Scored { id: anchor, score }, limit);
            let ids: Vec<_> = placed.iter().map(|hit| hit.id).collect();
            prop_assert_eq!(ids, ranking::top(&fused, limit).unwrap());
        }

        #[test]
        fn the_joined_vector_s_inner_product_is_the_mean_of_the_two_cosines(
            (text_bge, text_tse) in (unit(5), unit(9)),
            (image_bge, image_tse) in (unit(5), unit(9)),
        ) {
            let joined = dot(&join_towers(&text_bge, &text_tse), &join_towers(&image_bge, &image_tse));
            let mean = (dot(&text_bge, &image_bge) + dot(&text_tse, &image_tse)) / 2.0;
            prop_assert!((joined - mean).abs() < TOLERANCE);
            let stored = join_towers(&image_bge, &image_tse);
            prop_assert!((dot(&stored, &stored) - 1.0).abs() < TOLERANCE);
        }
    }
}
