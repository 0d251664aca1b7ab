use crate::{EvaluationError, Metrics, QueryResult};

/// The metrics after each round of an interaction: element 0 before any, element r after round r.
///
/// A query counts with its refined result from the round in which it was refined.
///
/// - `baseline`, `refined`: results of the same queries before and after the whole interaction.
/// - `refined_in`: the round (1 to `rounds`) in which each query was refined, `None` where it was not.
///
/// # Errors
/// [`EvaluationError`] where there is no query, the lengths disagree or a round is out of range.
pub fn metrics_by_round(
    baseline: &[QueryResult],
    refined: &[QueryResult],
    refined_in: &[Option<usize>],
    rounds: usize,
) -> Result<Vec<Metrics>, EvaluationError> {
    if baseline.is_empty() {
        return Err(EvaluationError::NoQueries);
    }
    for (field, actual) in [("refined", refined.len()), ("refined_in", refined_in.len())] {
        if actual != baseline.len() {
            return Err(EvaluationError::Length { field, expected: baseline.len(), actual });
        }
    }
    for (query, round) in refined_in.iter().enumerate() {
        if let Some(actual) = round.filter(|round| !(1..=rounds).contains(round)) {
            return Err(EvaluationError::Round { query, actual, rounds });
        }
    }
    let after = |round: usize| {
        let current =
            baseline.iter().zip(refined).zip(refined_in).map(
                |((before, after), refined_in)| match refined_in {
                    Some(refined_in) if *refined_in <= round => *after,
                    _ => *before,
                },
            );
        Metrics::mean(&current.collect::<Vec<_>>())
    };
    Ok((0..=rounds).map(after).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(places: &[usize]) -> Vec<QueryResult> {
        places.iter().map(|place| QueryResult::from_places(&[*place]).unwrap()).collect()
    }

    #[test]
    fn a_query_counts_as_refined_from_its_round_on() {
        let (before, after) = (results(&[2, 4, 1]), results(&[1, 1, 5]));
        let rounds = metrics_by_round(&before, &after, &[Some(1), Some(3), None], 3).unwrap();
        let rank1: Vec<_> = rounds.iter().map(|metrics| (metrics.rank1 * 3.0 / 100.0).round()).collect();
        assert_eq!(rank1, [1.0, 2.0, 2.0, 3.0]);
        assert!((rounds[0].map - 100.0 * (0.5 + 0.25 + 1.0) / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_round_out_of_range_is_refused() {
        let one = results(&[1]);
        for round in [0, 4] {
            assert_eq!(
                metrics_by_round(&one, &one, &[Some(round)], 3),
                Err(EvaluationError::Round { query: 0, actual: round, rounds: 3 })
            );
        }
    }
}
