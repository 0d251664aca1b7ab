//! The order of results: score descending, then gallery order ascending.
//!
//! Scores tie when images are duplicates or rounding makes them equal; a fixed order makes every ranking, and with
//! it every metric, a function of its inputs. NaN has no place in an order and is refused.

use std::cmp::Ordering;

/// A score that cannot be ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the score at position {position} is not a number")]
pub struct NotANumber {
    /// Where, from 0.
    pub position: usize,
}

/// An item with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored<Id> {
    /// The item; its order is the gallery's order.
    pub id: Id,
    /// Its similarity, not NaN.
    pub score: f32,
}

/// `Less` where `left` ranks before `right`: the higher score, then the smaller place. The two zeros are equal.
/// Total for scores that are not NaN.
pub fn compare<Id: Ord>(left: (f32, &Id), right: (f32, &Id)) -> Ordering {
    right.0.partial_cmp(&left.0).unwrap_or(Ordering::Equal).then_with(|| left.1.cmp(right.1))
}

/// All positions of `scores`, best first.
///
/// # Errors
/// [`NotANumber`] for the first NaN.
pub fn order(scores: &[f32]) -> Result<Vec<usize>, NotANumber> {
    check(scores)?;
    let mut positions: Vec<usize> = (0..scores.len()).collect();
    positions.sort_unstable_by(|a, b| compare((scores[*a], a), (scores[*b], b)));
    Ok(positions)
}

/// The `limit` best positions of `scores`, best first; all of them where there are fewer (Eq. 1 of the ICL paper,
/// CVPR 2025).
///
/// # Errors
/// [`NotANumber`] for the first NaN.
pub fn top(scores: &[f32], limit: usize) -> Result<Vec<usize>, NotANumber> {
    check(scores)?;
    let mut positions: Vec<usize> = (0..scores.len()).collect();
    let by_rank = |a: &usize, b: &usize| compare((scores[*a], a), (scores[*b], b));
    if limit < positions.len() {
        positions.select_nth_unstable_by(limit, by_rank);
        positions.truncate(limit);
    }
    positions.sort_unstable_by(by_rank);
    Ok(positions)
}

fn check(scores: &[f32]) -> Result<(), NotANumber> {
    match scores.iter().position(|score| score.is_nan()) {
        Some(position) => Err(NotANumber { position }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ties_keep_the_gallery_order() {
        assert_eq!(order(&[0.5, 0.9, 0.5, 0.9, -0.0, 0.0]).unwrap(), [1, 3, 0, 2, 4, 5]);
    }

    #[test]
    fn nan_is_refused_with_its_place() {
        assert_eq!(order(&[0.0, f32::NAN]), Err(NotANumber { position: 1 }));
        assert_eq!(top(&[f32::NAN], 0), Err(NotANumber { position: 0 }));
    }

    proptest! {
        #[test]
        fn the_top_is_the_beginning_of_the_whole_order(
            scores in proptest::collection::vec((-4i8..4).prop_map(f32::from), 0..40),
            limit in 0usize..50,
        ) {
            let whole = order(&scores).unwrap();
            prop_assert_eq!(top(&scores, limit).unwrap(), &whole[..limit.min(whole.len())]);
        }
    }
}
