use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{EvaluationError, Metric, QueryResult};

/// Resamples that give a stable second digit of the interval.
pub const DEFAULT_RESAMPLES: usize = 2_000;
/// Most resamples accepted.
pub const MAX_RESAMPLES: usize = 1_000_000;
/// Share of the resamples that lie outside the interval.
const OUTSIDE: f64 = 0.05;

/// A difference of two means over the same queries, in percentage points.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// Treated minus baseline.
    pub mean: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
}

impl Difference {
    /// True where the whole interval is above `points`.
    pub fn exceeds(&self, points: f64) -> bool {
        self.low > points
    }
}

/// The difference of each metric.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Differences {
    /// Rank-1.
    pub rank1: Difference,
    /// Rank-5.
    pub rank5: Difference,
    /// Rank-10.
    pub rank10: Difference,
    /// Mean average precision.
    pub map: Difference,
    /// Mean inverse negative penalty.
    pub minp: Difference,
}

impl Differences {
    /// The difference of one metric.
    pub fn get(&self, metric: Metric) -> Difference {
        match metric {
            Metric::Rank1 => self.rank1,
            Metric::Rank5 => self.rank5,
            Metric::Rank10 => self.rank10,
            Metric::Map => self.map,
            Metric::Minp => self.minp,
        }
    }
}

/// Sums of one identity: all its queries enter or leave a resample together.
#[derive(Debug, Clone, Copy, Default)]
struct Cluster {
    queries: usize,
    differences: [f64; 5],
}

/// The 95 % percentile interval of `treated - baseline` for every metric, by paired bootstrap over identities: whole
/// identities are drawn with replacement, because queries about one person are not independent. The same seed gives
/// the same interval on every machine.
///
/// - `baseline`, `treated`: results of the same queries in the same order.
/// - `query_ids`: the identity of each query.
/// - `resamples`: 1 to [`MAX_RESAMPLES`]; see [`DEFAULT_RESAMPLES`].
///
/// # Errors
/// [`EvaluationError`] where there is no query, the lengths disagree or `resamples` is out of range.
pub fn bootstrap_differences(
    baseline: &[QueryResult],
    treated: &[QueryResult],
    query_ids: &[i64],
    resamples: usize,
    seed: u64,
) -> Result<Differences, EvaluationError> {
    if baseline.is_empty() {
        return Err(EvaluationError::NoQueries);
    }
    for (field, actual) in [("treated", treated.len()), ("query ids", query_ids.len())] {
        if actual != baseline.len() {
            return Err(EvaluationError::Length { field, expected: baseline.len(), actual });
        }
    }
    if !(1..=MAX_RESAMPLES).contains(&resamples) {
        let limit = MAX_RESAMPLES;
        return Err(EvaluationError::Setting { field: "resamples", lowest: 1, limit, actual: resamples });
    }

    let mut by_identity: BTreeMap<i64, Cluster> = BTreeMap::new();
    for ((before, after), identity) in baseline.iter().zip(treated).zip(query_ids) {
        let cluster = by_identity.entry(*identity).or_default();
        cluster.queries += 1;
        for (sum, metric) in cluster.differences.iter_mut().zip(Metric::ALL) {
            *sum += after.value(metric) - before.value(metric);
        }
    }
    let clusters: Vec<Cluster> = by_identity.into_values().collect();

    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn: [Vec<f64>; 5] = std::array::from_fn(|_| Vec::with_capacity(resamples));
    for _ in 0..resamples {
        let sample = (0..clusters.len()).map(|_| &clusters[random.random_range(0..clusters.len())]);
        for (draws, mean) in drawn.iter_mut().zip(mean_differences(sample)) {
            draws.push(mean);
        }
    }
    let means = mean_differences(clusters.iter());
    let [rank1, rank5, rank10, map, minp] = std::array::from_fn(|index| {
        let draws = &mut drawn[index];
        draws.sort_by(f64::total_cmp);
        let (low, high) = (quantile(draws, OUTSIDE / 2.0), quantile(draws, 1.0 - OUTSIDE / 2.0));
        Difference { mean: means[index], low, high }
    });
    Ok(Differences { rank1, rank5, rank10, map, minp })
}

fn mean_differences<'a>(clusters: impl Iterator<Item = &'a Cluster>) -> [f64; 5] {
    let mut total = Cluster::default();
    for cluster in clusters {
        total.queries += cluster.queries;
        for (sum, add) in total.differences.iter_mut().zip(cluster.differences) {
            *sum += add;
        }
    }
    total.differences.map(|sum| sum / total.queries as f64)
}

/// A quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(first_match: usize) -> QueryResult {
        QueryResult::from_places(&[first_match]).unwrap()
    }

    fn rank1(baseline: &[usize], treated: &[usize], ids: &[i64]) -> Difference {
        let results = |places: &[usize]| places.iter().copied().map(result).collect::<Vec<_>>();
        bootstrap_differences(&results(baseline), &results(treated), ids, 1_000, 7).unwrap().rank1
    }

    #[test]
    fn no_difference_has_an_interval_of_no_width() {
        let same = rank1(&[1, 2, 3, 1], &[1, 2, 3, 1], &[0, 1, 2, 3]);
        assert_eq!(same, Difference { mean: 0.0, low: 0.0, high: 0.0 });
    }

    #[test]
    fn a_constant_gain_has_an_interval_of_no_width() {
        let all = rank1(&[2; 8], &[1; 8], &[0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(all, Difference { mean: 100.0, low: 100.0, high: 100.0 });
        assert!(all.exceeds(99.0));
    }

    #[test]
    fn the_interval_encloses_the_mean_and_has_the_width_of_the_normal_approximation() {
        // Half of 400 independent queries gain: the standard error is 100 * 0.5 / 20 = 2.5 points.
        let treated: Vec<usize> = (0..400).map(|query| 1 + query % 2).collect();
        let ids: Vec<i64> = (0..400).collect();
        let gain = rank1(&[2; 400], &treated, &ids);
        assert_eq!(gain.mean, 50.0);
        let half_width = 1.96 * 2.5;
        assert!((gain.mean - gain.low - half_width).abs() < 1.0, "{gain:?}");
        assert!((gain.high - gain.mean - half_width).abs() < 1.0, "{gain:?}");
    }

    #[test]
    fn queries_of_one_identity_count_as_one_draw() {
        // The same results in 4 identities instead of 400 are far less certain.
        let treated: Vec<usize> = (0..400).map(|query| 1 + query / 100 % 2).collect();
        let alone = rank1(&[2; 400], &treated, &(0..400).collect::<Vec<_>>());
        let grouped = rank1(&[2; 400], &treated, &(0..400).map(|query| query / 100).collect::<Vec<_>>());
        assert!(grouped.high - grouped.low > 3.0 * (alone.high - alone.low));
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let (before, after) = ([2, 2, 1, 5, 9, 1], [1, 3, 1, 1, 2, 6]);
        let ids = [0, 0, 1, 1, 2, 3];
        assert_eq!(rank1(&before, &after, &ids), rank1(&before, &after, &ids));
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let one = [result(1)];
        assert_eq!(bootstrap_differences(&[], &[], &[], 10, 0), Err(EvaluationError::NoQueries));
        assert!(matches!(
            bootstrap_differences(&one, &[], &[1], 10, 0),
            Err(EvaluationError::Length { field: "treated", .. })
        ));
        assert!(matches!(
            bootstrap_differences(&one, &one, &[1], 0, 0),
            Err(EvaluationError::Setting { field: "resamples", .. })
        ));
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert_eq!(quantile(&[3.0], 0.975), 3.0);
    }
}
