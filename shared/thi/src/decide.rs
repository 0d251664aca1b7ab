use crate::ranking::{self, NotANumber};
use crate::{Answer, Candidate, Interaction, InteractionError, Refinement, Settings, Step};

/// The method's decisions for a set of queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decisions {
    /// Gallery index of each query's anchor; `None` where the query stays as it is.
    pub anchors: Vec<Option<usize>>,
    /// Round (from 1) in which each anchor was confirmed.
    pub rounds: Vec<Option<usize>>,
    /// Localisation questions that had to be asked.
    pub questions: usize,
}

/// Inputs of [`decide_all`] that do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// The matrix is not a whole number of rows.
    #[error("similarity has {actual} values, which is not {queries} queries x {gallery} gallery images")]
    SimilarityShape {
        /// Values given.
        actual: usize,
        /// Rows expected.
        queries: usize,
        /// Columns expected.
        gallery: usize,
    },
    /// The answers are not one row of `rounds` per query.
    #[error("answers has {actual} values, which is not {queries} queries x {rounds} rounds")]
    AnswersShape {
        /// Values given.
        actual: usize,
        /// Rows expected.
        queries: usize,
        /// Columns expected.
        rounds: usize,
    },
    /// An answer that is neither 0 nor 1.
    #[error("answers[{query}, {round}] is {actual}; answers are 0 or 1")]
    Answer {
        /// Row, from 0.
        query: usize,
        /// Column, from 0.
        round: usize,
        /// What was given.
        actual: u8,
    },
    /// A similarity is NaN.
    #[error("similarity[{query}, {gallery}] is not a number")]
    NotANumber {
        /// Row, from 0.
        query: usize,
        /// Column, from 0.
        gallery: usize,
    },
    /// A state machine refused its own questions' answers; cannot happen for inputs that passed the checks above.
    #[error(transparent)]
    Interaction(#[from] InteractionError),
}

/// Decides every query, given the answer to every question that could be asked.
///
/// - `similarity`: row-major `[queries, gallery]`, similarity to the original text.
/// - `answers`: row-major `[queries, settings.rounds()]`, 1 where the answer about the k-th candidate is Yes.
///
/// # Errors
/// [`DecideError`] where shapes disagree, an answer is neither 0 nor 1 or a similarity is NaN.
pub fn decide_all(
    similarity: &[f32],
    queries: usize,
    gallery: usize,
    answers: &[u8],
    settings: &Settings,
) -> Result<Decisions, DecideError> {
    let rounds = settings.rounds();
    if queries.checked_mul(gallery) != Some(similarity.len()) {
        return Err(DecideError::SimilarityShape { actual: similarity.len(), queries, gallery });
    }
    if queries.checked_mul(rounds) != Some(answers.len()) {
        return Err(DecideError::AnswersShape { actual: answers.len(), queries, rounds });
    }
    if let Some((position, &actual)) = answers.iter().enumerate().find(|(_, answer)| **answer > 1) {
        return Err(DecideError::Answer { query: position / rounds, round: position % rounds, actual });
    }

    let mut decisions = Decisions { anchors: Vec::new(), rounds: Vec::new(), questions: 0 };
    for query in 0..queries {
        let row = &similarity[query * gallery..][..gallery];
        let given = &answers[query * rounds..][..rounds];
        let top = ranking::top(row, rounds)
            .map_err(|NotANumber { position }| DecideError::NotANumber { query, gallery: position })?;
        let candidates = top.into_iter().map(|id| Candidate { id, score: row[id] });
        let mut interaction = Interaction::new(settings, candidates)?;
        let outcome = loop {
            match interaction.step() {
                Step::Ask(question) => {
                    let answer = if given[question.round - 1] == 1 { Answer::Yes } else { Answer::No };
                    interaction.answer(question.round, answer)?;
                }
                Step::Refine { .. } => {
                    interaction.refined(Refinement::Done)?;
                }
                Step::Done(outcome) => break outcome,
            }
        };
        decisions.questions += interaction.questions_answered();
        decisions.anchors.push(outcome.refined().map(|(_, anchor)| *anchor));
        decisions.rounds.push(outcome.refined().map(|(round, _)| round));
    }
    Ok(decisions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rounds: usize) -> Settings {
        Settings::new(rounds, 0.5, 0.8, 0.5).unwrap()
    }

    #[test]
    fn anchors_are_gallery_indices_of_the_confirmed_candidates() {
        let similarity = [
            0.1, 0.9, 0.2, // high, Yes in round 1 -> image 1
            0.4, 0.1, 0.3, // low, Yes in round 2 -> image 2
            0.4, 0.1, 0.3, // low, Yes in round 1 -> unchanged
            0.9, 0.1, 0.3, // high, No in round 1 -> unchanged
        ];
        let answers = [1, 0, 0, 1, 1, 1, 0, 1];
        let decisions = decide_all(&similarity, 4, 3, &answers, &settings(2)).unwrap();
        assert_eq!(decisions.anchors, [Some(1), Some(2), None, None]);
        assert_eq!(decisions.rounds, [Some(1), Some(2), None, None]);
        assert_eq!(decisions.questions, 1 + 2 + 1 + 1);
    }

    #[test]
    fn a_gallery_smaller_than_the_rounds_is_decided_with_what_there_is() {
        let decisions = decide_all(&[0.1, 0.2], 1, 2, &[0; 5], &settings(5)).unwrap();
        assert_eq!(decisions, Decisions { anchors: vec![None], rounds: vec![None], questions: 2 });
        let empty = decide_all(&[], 1, 0, &[1; 5], &settings(5)).unwrap();
        assert_eq!(empty.questions, 0);
    }

    #[test]
    fn equal_scores_are_asked_in_gallery_order() {
        let decisions = decide_all(&[0.3, 0.3, 0.3], 1, 3, &[0, 1], &settings(2)).unwrap();
        assert_eq!(decisions.anchors, [Some(1)]);
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let refused = |similarity: &[f32], answers: &[u8]| {
            decide_all(similarity, 1, 2, answers, &settings(1)).unwrap_err()
        };
        assert!(matches!(refused(&[0.0; 3], &[0]), DecideError::SimilarityShape { actual: 3, .. }));
        assert!(matches!(refused(&[0.0; 2], &[0, 0]), DecideError::AnswersShape { actual: 2, .. }));
        assert!(matches!(refused(&[0.0; 2], &[7]), DecideError::Answer { actual: 7, .. }));
        assert_eq!(refused(&[0.0, f32::NAN], &[0]), DecideError::NotANumber { query: 0, gallery: 1 });
    }
}
