use serde::{Deserialize, Serialize};

/// Means over all queries, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Queries with a match in first place.
    pub rank1: f64,
    /// Queries with a match among the first five.
    pub rank5: f64,
    /// Queries with a match among the first ten.
    pub rank10: f64,
    /// Mean average precision over the full ranking.
    pub map: f64,
    /// Mean inverse negative penalty: how far down the last match is.
    pub minp: f64,
}

/// One of the five numbers of [`Metrics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// [`Metrics::rank1`].
    Rank1,
    /// [`Metrics::rank5`].
    Rank5,
    /// [`Metrics::rank10`].
    Rank10,
    /// [`Metrics::map`].
    Map,
    /// [`Metrics::minp`].
    Minp,
}

impl Metric {
    /// All five, in the order they are printed.
    pub const ALL: [Self; 5] = [Self::Rank1, Self::Rank5, Self::Rank10, Self::Map, Self::Minp];

    /// The name scripts know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rank1 => "rank1",
            Self::Rank5 => "rank5",
            Self::Rank10 => "rank10",
            Self::Map => "map",
            Self::Minp => "minp",
        }
    }
}

impl Metrics {
    /// One of the five numbers, in percent.
    pub fn get(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Rank1 => self.rank1,
            Metric::Rank5 => self.rank5,
            Metric::Rank10 => self.rank10,
            Metric::Map => self.map,
            Metric::Minp => self.minp,
        }
    }

    /// The means over `queries`; all zero without a query.
    pub fn mean(queries: &[QueryResult]) -> Self {
        let mean = |metric| match queries {
            [] => 0.0,
            _ => queries.iter().map(|query| query.value(metric)).sum::<f64>() / queries.len() as f64,
        };
        Self {
            rank1: mean(Metric::Rank1),
            rank5: mean(Metric::Rank5),
            rank10: mean(Metric::Rank10),
            map: mean(Metric::Map),
            minp: mean(Metric::Minp),
        }
    }
}

/// How well one query did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QueryResult {
    /// Place of the first match, from 1.
    pub first_match: usize,
    /// Place of the last match, from 1.
    pub last_match: usize,
    /// Images of the query's identity in the gallery, at least 1.
    pub matches: usize,
    /// Average precision, 0 to 1.
    pub average_precision: f64,
}

impl QueryResult {
    /// Reads the places (from 1, ascending) of all matches of a ranking; `None` without a match.
    ///
    /// Average precision is the mean over the matches of (matches so far) / (place).
    pub fn from_places(places: &[usize]) -> Option<Self> {
        let (&first_match, &last_match) = (places.first()?, places.last()?);
        let precision: f64 =
            places.iter().enumerate().map(|(index, place)| (index + 1) as f64 / *place as f64).sum();
        let matches = places.len();
        Some(Self { first_match, last_match, matches, average_precision: precision / matches as f64 })
    }

    /// Inverse negative penalty: matches / place of the last match, 0 to 1.
    pub fn inverse_negative_penalty(&self) -> f64 {
        self.matches as f64 / self.last_match as f64
    }

    /// What this query adds to the mean of a metric, in percent.
    pub fn value(&self, metric: Metric) -> f64 {
        let within = |places| if self.first_match <= places { 1.0 } else { 0.0 };
        100.0
            * match metric {
                Metric::Rank1 => within(1),
                Metric::Rank5 => within(5),
                Metric::Rank10 => within(10),
                Metric::Map => self.average_precision,
                Metric::Minp => self.inverse_negative_penalty(),
            }
    }
}

/// The metrics of a set of queries, and what each query contributed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Means over all queries.
    pub metrics: Metrics,
    /// One result a query, in the order of the input.
    pub queries: Vec<QueryResult>,
}

impl Evaluation {
    /// Takes the means of per-query results.
    pub fn new(queries: Vec<QueryResult>) -> Self {
        Self { metrics: Metrics::mean(&queries), queries }
    }
}

/// Inputs that cannot be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum EvaluationError {
    /// There is nothing to take a mean of.
    #[error("there are no queries")]
    NoQueries,
    /// An input has the wrong number of values.
    #[error("{field} has {actual} values, {expected} expected")]
    Length {
        /// `similarity`, `rankings`, `treated`, ...
        field: &'static str,
        /// Values expected.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// A similarity is NaN.
    #[error("similarity[{query}, {gallery}] is not a number")]
    NotANumber {
        /// Row, from 0.
        query: usize,
        /// Column, from 0.
        gallery: usize,
    },
    /// The gallery has no image of the query's identity, so its metrics are undefined.
    #[error("query {query} has identity {identity}, which no gallery image has")]
    NoMatch {
        /// Row, from 0.
        query: usize,
        /// The identity.
        identity: i64,
    },
    /// A ranking leaves an image out, has one twice or names one that is not there.
    #[error(
        "the ranking of query {query} is not an order of the {gallery} gallery images: see its place {place}"
    )]
    NotAnOrder {
        /// Row, from 0.
        query: usize,
        /// Images in the gallery.
        gallery: usize,
        /// First wrong place, from 0.
        place: usize,
    },
    /// A round beyond the last.
    #[error("query {query} was refined in round {actual}, but there are rounds 1 to {rounds}")]
    Round {
        /// Row, from 0.
        query: usize,
        /// The round given.
        actual: usize,
        /// The last round.
        rounds: usize,
    },
    /// A setting outside its range.
    #[error("{field} must be {lowest} to {limit}, not {actual}")]
    Setting {
        /// `resamples` or `bins`.
        field: &'static str,
        /// Smallest value accepted.
        lowest: usize,
        /// Largest value accepted.
        limit: usize,
        /// What was given.
        actual: usize,
    },
}

/// Evaluates a similarity matrix: f32, row-major `[query_ids.len(), gallery_ids.len()]`; the higher, the better.
/// Images of equal similarity rank in gallery order.
///
/// # Errors
/// [`EvaluationError`] where there is no query, the matrix has the wrong size or a NaN, or a query has no match.
pub fn evaluate_similarity(
    similarity: &[f32],
    query_ids: &[i64],
    gallery_ids: &[i64],
) -> Result<Evaluation, EvaluationError> {
    if query_ids.is_empty() {
        return Err(EvaluationError::NoQueries);
    }
    let expected = query_ids.len().saturating_mul(gallery_ids.len());
    if similarity.len() != expected {
        let actual = similarity.len();
        return Err(EvaluationError::Length { field: "similarity", expected, actual });
    }
    let gallery = gallery_ids.len();
    let evaluate = |(query, &identity): (usize, &i64)| {
        let row = &similarity[query * gallery..][..gallery];
        if let Some(gallery) = row.iter().position(|score| score.is_nan()) {
            return Err(EvaluationError::NotANumber { query, gallery });
        }
        QueryResult::from_places(&match_places(row, identity, gallery_ids))
            .ok_or(EvaluationError::NoMatch { query, identity })
    };
    let queries = query_ids.iter().enumerate().map(evaluate).collect::<Result<_, _>>()?;
    Ok(Evaluation::new(queries))
}

/// Evaluates finished rankings: for each query all gallery positions (from 0), best first.
///
/// # Errors
/// [`EvaluationError`] where there is no query, the number of rankings is wrong, a ranking is not an order of the
/// whole gallery or a query has no match.
pub fn evaluate_rankings<R: AsRef<[usize]>>(
    rankings: &[R],
    query_ids: &[i64],
    gallery_ids: &[i64],
) -> Result<Evaluation, EvaluationError> {
    if query_ids.is_empty() {
        return Err(EvaluationError::NoQueries);
    }
    if rankings.len() != query_ids.len() {
        let (expected, actual) = (query_ids.len(), rankings.len());
        return Err(EvaluationError::Length { field: "rankings", expected, actual });
    }
    let evaluate = |(query, (ranking, &identity)): (usize, (&R, &i64))| {
        let ranking = ranking.as_ref();
        check_order(ranking, query, gallery_ids.len())?;
        let places: Vec<usize> = (1..)
            .zip(ranking)
            .filter(|(_, image)| gallery_ids[**image] == identity)
            .map(|(place, _)| place)
            .collect();
        QueryResult::from_places(&places).ok_or(EvaluationError::NoMatch { query, identity })
    };
    let queries = rankings.iter().zip(query_ids).enumerate().map(evaluate).collect::<Result<_, _>>()?;
    Ok(Evaluation::new(queries))
}

/// Places (from 1, ascending) of all images of `identity`.
///
/// Only the matches are sorted; every other image is counted ahead of the matches it outranks. That is
/// O(gallery x log matches) instead of a sort of the whole row, which matters for galleries of 20,000 images.
fn match_places(row: &[f32], identity: i64, gallery_ids: &[i64]) -> Vec<usize> {
    let before = |a: usize, b: usize| row[a] > row[b] || (row[a] == row[b] && a < b);
    let mut matches: Vec<usize> = (0..row.len()).filter(|image| gallery_ids[*image] == identity).collect();
    matches.sort_by(|a, b| before(*b, *a).cmp(&before(*a, *b)));

    let mut ahead = vec![0; matches.len() + 1];
    for image in (0..row.len()).filter(|image| gallery_ids[*image] != identity) {
        ahead[matches.partition_point(|found| before(*found, image))] += 1;
    }
    let mut others = 0;
    (0..matches.len())
        .map(|index| {
            others += ahead[index];
            others + index + 1
        })
        .collect()
}

fn check_order(ranking: &[usize], query: usize, gallery: usize) -> Result<(), EvaluationError> {
    let mut seen = vec![false; gallery];
    for (place, image) in ranking.iter().enumerate() {
        match seen.get_mut(*image) {
            Some(slot) if !*slot => *slot = true,
            _ => return Err(EvaluationError::NotAnOrder { query, gallery, place }),
        }
    }
    match ranking.len() == gallery {
        true => Ok(()),
        false => Err(EvaluationError::NotAnOrder { query, gallery, place: ranking.len() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_worked_example_has_the_numbers_of_the_definition() {
        // Ranking: image 1 (no), 0 (match), 3 (no), 2 (match).
        let evaluation = evaluate_similarity(&[0.8, 0.9, 0.1, 0.2], &[7], &[7, 1, 7, 2]).unwrap();
        let query = evaluation.queries[0];
        assert_eq!((query.first_match, query.last_match, query.matches), (2, 4, 2));
        assert_eq!(query.average_precision, (1.0 / 2.0 + 2.0 / 4.0) / 2.0);
        let Metrics { rank1, rank5, rank10, map, minp } = evaluation.metrics;
        assert_eq!((rank1, rank5, rank10, map, minp), (0.0, 100.0, 100.0, 50.0, 50.0));
    }

    #[test]
    fn ties_rank_in_gallery_order() {
        let first_match =
            |ids: &[i64]| evaluate_similarity(&[0.5, 0.5, 0.5], &[1], ids).unwrap().queries[0].first_match;
        assert_eq!(first_match(&[1, 0, 0]), 1);
        assert_eq!(first_match(&[0, 0, 1]), 3);
    }

    #[test]
    fn metrics_are_written_under_their_short_names() {
        let metrics = Metrics { rank1: 1.0, rank5: 2.0, rank10: 3.0, map: 4.0, minp: 5.0 };
        let written = serde_json::to_value(metrics).unwrap();
        assert_eq!(
            written,
            serde_json::json!({"rank1": 1.0, "rank5": 2.0, "rank10": 3.0, "map": 4.0, "minp": 5.0})
        );
        for metric in Metric::ALL {
            assert_eq!(written[metric.name()], metrics.get(metric));
        }
    }

    #[test]
    fn a_query_without_a_match_is_named() {
        assert_eq!(
            evaluate_similarity(&[0.1, 0.2], &[3, 4], &[3]),
            Err(EvaluationError::NoMatch { query: 1, identity: 4 })
        );
        assert_eq!(
            evaluate_rankings(&[[0]], &[4], &[3]),
            Err(EvaluationError::NoMatch { query: 0, identity: 4 })
        );
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        assert_eq!(evaluate_similarity(&[], &[], &[1]), Err(EvaluationError::NoQueries));
        assert!(matches!(
            evaluate_similarity(&[0.0; 3], &[1, 1], &[1]),
            Err(EvaluationError::Length { expected: 2, actual: 3, .. })
        ));
        assert_eq!(
            evaluate_similarity(&[0.0, f32::NAN], &[1], &[1, 2]),
            Err(EvaluationError::NotANumber { query: 0, gallery: 1 })
        );
    }

    #[test]
    fn a_ranking_that_is_not_an_order_is_refused_with_its_place() {
        let refused = |ranking: &[usize]| evaluate_rankings(&[ranking], &[1], &[1, 2]).unwrap_err();
        let wrong = |place| EvaluationError::NotAnOrder { query: 0, gallery: 2, place };
        assert_eq!(refused(&[0]), wrong(1));
        assert_eq!(refused(&[0, 0]), wrong(1));
        assert_eq!(refused(&[0, 2]), wrong(1));
        assert_eq!(refused(&[0, 1, 1]), wrong(2));
    }

    /// The definition, read literally: sort, then look at every place.
    fn plainly(row: &[f32], identity: i64, gallery_ids: &[i64]) -> [f64; 5] {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let hits: Vec<bool> = order.iter().map(|image| gallery_ids[*image] == identity).collect();
        let total = hits.iter().filter(|hit| **hit).count() as f64;
        let rank = |k: usize| if hits.iter().take(k).any(|hit| *hit) { 100.0 } else { 0.0 };
        let mut precision = 0.0;
        let mut last = 0;
        for place in 0..hits.len() {
            if hits[place] {
                let so_far = hits[..=place].iter().filter(|hit| **hit).count();
                precision += so_far as f64 / (place + 1) as f64;
                last = place + 1;
            }
        }
        [rank(1), rank(5), rank(10), 100.0 * precision / total, 100.0 * total / last as f64]
    }

    proptest! {
        #[test]
        fn every_metric_equals_its_plain_definition(
            gallery in proptest::collection::vec((0i64..4, 0u8..12), 1..40),
            scores in proptest::collection::vec(0u8..12, 40 * 6),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let gallery_ids: Vec<i64> = gallery.iter().map(|(id, _)| *id).collect();
            let query_ids: Vec<i64> = picks.iter().map(|pick| gallery_ids[pick.index(gallery_ids.len())]).collect();
            let cells = query_ids.len() * gallery_ids.len();
            let similarity: Vec<f32> = scores[..cells].iter().map(|score| f32::from(*score) / 8.0).collect();
            let evaluation = evaluate_similarity(&similarity, &query_ids, &gallery_ids).unwrap();

            let mut rankings = Vec::new();
            for (query, identity) in query_ids.iter().enumerate() {
                let row = &similarity[query * gallery_ids.len()..][..gallery_ids.len()];
                let expected = plainly(row, *identity, &gallery_ids);
                for (metric, expected) in Metric::ALL.into_iter().zip(expected) {
                    prop_assert!((evaluation.queries[query].value(metric) - expected).abs() < 1e-9);
                }
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
                rankings.push(order);
            }
            prop_assert_eq!(&evaluate_rankings(&rankings, &query_ids, &gallery_ids).unwrap(), &evaluation);
            let metrics = evaluation.metrics;
            prop_assert!(metrics.rank1 <= metrics.rank5 && metrics.rank5 <= metrics.rank10);
        }
    }
}
