use serde::{Deserialize, Serialize};

use crate::EvaluationError;

/// Most bins accepted.
const MAX_BINS: usize = 10_000;

/// Counts in bins of equal width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower end of the first bin.
    pub low: f64,
    /// Upper end of the last bin; a value equal to it belongs to the last bin.
    pub high: f64,
    /// Values in each bin.
    pub counts: Vec<usize>,
}

/// Counts several groups of values in the same bins, from the smallest to the largest value of all. Values that are
/// not finite are left out. Where all values are equal the one range is widened to 1, so that bins have a width.
///
/// # Errors
/// [`EvaluationError::Setting`] where `bins` is 0 or above 10,000.
pub fn histograms<const GROUPS: usize>(
    groups: [&[f32]; GROUPS],
    bins: usize,
) -> Result<[Histogram; GROUPS], EvaluationError> {
    if !(1..=MAX_BINS).contains(&bins) {
        return Err(EvaluationError::Setting { field: "bins", lowest: 1, limit: MAX_BINS, actual: bins });
    }
    let finite = |group: &[f32]| -> Vec<f64> {
        group.iter().filter(|value| value.is_finite()).map(|value| f64::from(*value)).collect()
    };
    let groups = groups.map(finite);
    let all = || groups.iter().flatten().copied();
    let (low, high) = match (all().reduce(f64::min), all().reduce(f64::max)) {
        (Some(low), Some(high)) if low < high => (low, high),
        (Some(only), _) => (only - 0.5, only + 0.5),
        (None, _) => (0.0, 1.0),
    };
    Ok(groups.map(|group| {
        let mut counts = vec![0; bins];
        for value in group {
            let bin = ((value - low) / (high - low) * bins as f64) as usize;
            counts[bin.min(bins - 1)] += 1;
        }
        Histogram { low, high, counts }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_their_bins_and_keep_every_value() {
        let [right, wrong] = histograms([&[0.0, 0.5, 1.0], &[0.24, 0.26]], 4).unwrap();
        assert_eq!((right.low, right.high), (0.0, 1.0));
        assert_eq!((wrong.low, wrong.high), (0.0, 1.0));
        assert_eq!(right.counts, [1, 0, 1, 1]);
        assert_eq!(wrong.counts, [1, 1, 0, 0]);
    }

    #[test]
    fn equal_values_and_no_values_have_a_range_too() {
        let [same, none] = histograms([&[0.5, 0.5], &[]], 2).unwrap();
        assert_eq!((same.low, same.high, same.counts.iter().sum()), (0.0, 1.0, 2usize));
        assert_eq!(none.counts, [0, 0]);
        let [empty] = histograms([&[f32::NAN]], 2).unwrap();
        assert_eq!(empty, Histogram { low: 0.0, high: 1.0, counts: vec![0, 0] });
    }

    #[test]
    fn no_bins_are_refused() {
        assert!(matches!(histograms([&[]], 0), Err(EvaluationError::Setting { field: "bins", .. })));
    }
}
