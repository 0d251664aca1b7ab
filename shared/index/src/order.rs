use std::cmp::Ordering;

use thicket_engine::Hit;

/// Partial sums of [`dot`]; a fixed number, so that the rounding is the same on every machine.
const LANES: usize = 8;

/// Inner product of two vectors of equal length, summed in f64 and rounded once to f32.
///
/// The result depends on the two vectors alone. It is never NaN for finite inputs, and never negative zero, so that
/// equal scores compare equal. Values beyond the longer vector's end are ignored.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f64; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += f64::from(x[lane]) * f64::from(y[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    (sums.iter().sum::<f64>() + rest) as f32 + 0.0
}

/// The order of a ranking: score descending, then id ascending.
pub fn compare(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// For each target, how many of `all` stand before it in a ranking (0 for the best).
///
/// Takes `O((all + targets) log targets)`; targets may repeat and need not be sorted.
pub fn ranks_before(all: impl Iterator<Item = Hit>, targets: &[Hit]) -> Vec<u64> {
    let mut by_rank: Vec<usize> = (0..targets.len()).collect();
    by_rank.sort_unstable_by(|&a, &b| compare(&targets[a], &targets[b]));
    // `starts[i]` counts the hits whose first follower among the sorted targets is the i-th.
    let mut starts = vec![0u64; targets.len()];
    for hit in all {
        let first_after = by_rank.partition_point(|&t| compare(&targets[t], &hit) != Ordering::Greater);
        if let Some(start) = starts.get_mut(first_after) {
            *start += 1;
        }
    }
    let mut ranks = vec![0u64; targets.len()];
    let mut before = 0;
    for (start, &target) in starts.iter().zip(&by_rank) {
        before += start;
        ranks[target] = before;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn negative_zero_scores_like_zero() {
        assert_eq!(dot(&[-1.0], &[0.0]).to_bits(), 0f32.to_bits());
    }

    #[test]
    fn huge_finite_values_give_a_number() {
        let score = dot(&[f32::MAX, f32::MAX], &[f32::MAX, -f32::MAX]);
        assert_eq!(score, 0.0);
        assert_eq!(dot(&[f32::MAX], &[f32::MAX]), f32::INFINITY);
    }

    proptest! {
        #[test]
        fn dot_is_the_plain_sum(pairs in prop::collection::vec((-1f32..1.0, -1f32..1.0), 0..70)) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let plain: f64 = pairs.iter().map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            prop_assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-5);
        }

        #[test]
        fn ranks_are_positions_in_the_sorted_list(scores in prop::collection::vec(-2i8..3, 1..40), picks in prop::collection::vec(0usize..40, 1..10)) {
            let all: Vec<Hit> = scores.iter().enumerate().map(|(i, s)| Hit { id: (i as u64 * 7) % 41, score: f32::from(*s) }).collect();
            let targets: Vec<Hit> = picks.iter().map(|p| all[p % all.len()]).collect();
            let mut sorted = all.clone();
            sorted.sort_by(compare);
            let expected: Vec<u64> = targets.iter().map(|t| sorted.iter().position(|h| h == t).unwrap() as u64).collect();
            prop_assert_eq!(ranks_before(all.into_iter(), &targets), expected);
        }
    }
}
