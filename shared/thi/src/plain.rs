//! The method as a round-by-round loop over all queries, the way the paper writes it.
//!
//! It asks far more than it uses. It exists as the reference that [`crate::Interaction`] is compared with, and to
//! count what such a script asks.

use crate::Class;

/// One query of the loop.
#[derive(Debug, Clone, Copy)]
pub struct PlainQuery {
    /// Similarity of the best candidate.
    pub best: f32,
    /// Candidates to look at, at most the number of rounds.
    pub candidates: usize,
    /// True where the rewritten text would equal the original one: the loop then cannot see that the query was
    /// refined and keeps asking about it.
    pub echo: bool,
}

/// What the loop decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainRun {
    /// The round (from 1) in which each query was refined.
    pub refined_in: Vec<Option<usize>>,
    /// Localisation questions asked.
    pub questions: usize,
}

/// Runs `rounds` rounds. `is_yes(query, round)` tells the answer about the candidate of that round (from 1).
///
/// In every round all open queries are asked; a query is open while its current text is its original text.
pub fn run(
    queries: &[PlainQuery],
    rounds: usize,
    xi: f32,
    mut is_yes: impl FnMut(usize, usize) -> bool,
) -> PlainRun {
    let mut decisions = vec![vec![false; queries.len()]; rounds];
    let mut refined_in = vec![None; queries.len()];
    let mut questions = 0;
    for round in 0..rounds {
        for (index, query) in queries.iter().enumerate() {
            let open = refined_in[index].is_none() || query.echo;
            if !open || round >= query.candidates {
                continue;
            }
            questions += 1;
            decisions[round][index] = is_yes(index, round + 1);

            let accepted = decisions[round][index];
            let accepted_before = decisions[..round].iter().any(|decision| decision[index]);
            let refines = match (Class::of(query.best, xi), round) {
                (Class::High, 0) => accepted,
                (Class::High, _) | (Class::Low, 0) => false,
                (Class::Low, _) => accepted && !accepted_before,
            };
            if refines {
                refined_in[index] = Some(round + 1);
            }
        }
    }
    PlainRun { refined_in, questions }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Answer, Candidate, Interaction, Outcome, Refinement, Settings, Step};

    const ROUNDS: usize = 5;
    const XI: f32 = 0.5;

    /// Runs the state machine on one row of answers; returns its outcome and the number of questions.
    fn lazily(best: f32, candidates: usize, answers: &[bool]) -> (Outcome<usize>, usize) {
        let settings = Settings::new(ROUNDS, XI, 0.8, 0.5).unwrap();
        let candidates = (0..candidates).map(|id| Candidate { id, score: best - id as f32 * 0.01 });
        let mut query = Interaction::new(&settings, candidates).unwrap();
        loop {
            match query.step() {
                Step::Ask(question) => {
                    let answer = if answers[question.round - 1] { Answer::Yes } else { Answer::No };
                    query.answer(question.round, answer).unwrap();
                }
                Step::Refine { .. } => {
                    query.refined(Refinement::Done).unwrap();
                }
                Step::Done(outcome) => return (outcome, query.questions_answered()),
            }
        }
    }

    fn bits(table: usize) -> Vec<bool> {
        (0..ROUNDS).map(|round| table >> round & 1 == 1).collect()
    }

    #[test]
    fn lazy_and_round_by_round_agree_for_every_answer_table() {
        for table in 0..1 << ROUNDS {
            for best in [0.4, 0.5, 0.6] {
                for candidates in 0..=ROUNDS {
                    for echo in [false, true] {
                        let answers = bits(table);
                        let queries = [PlainQuery { best, candidates, echo }];
                        let plain = run(&queries, ROUNDS, XI, |_, round| answers[round - 1]);
                        let (outcome, questions) = lazily(best, candidates, &answers);
                        assert_eq!(plain.refined_in[0], outcome.refined().map(|(round, _)| round));
                        assert!(questions <= plain.questions);
                        if !echo {
                            assert_eq!(plain.questions, outcome.round_by_round_questions(candidates));
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_two_costs_differ_by_the_questions_whose_answers_nobody_reads(
            queries in proptest::collection::vec((prop_oneof![Just(0.4f32), Just(0.6f32)], 0usize..1 << ROUNDS), 0..30),
        ) {
            let plain_queries: Vec<_> = queries
                .iter()
                .map(|&(best, _)| PlainQuery { best, candidates: ROUNDS, echo: false })
                .collect();
            let plain = run(&plain_queries, ROUNDS, XI, |query, round| bits(queries[query].1)[round - 1]);
            let lazy: usize = queries.iter().map(|&(best, table)| lazily(best, ROUNDS, &bits(table)).1).sum();

            let first_yes = |table: usize| table & 1 == 1;
            let high_no = queries.iter().filter(|(best, table)| *best > XI && !first_yes(*table)).count();
            let low_yes = queries.iter().filter(|(best, table)| *best <= XI && first_yes(*table)).count();
            let later: usize = (2..=ROUNDS)
                .map(|round| {
                    let earlier = (1 << (round - 1)) - 1;
                    queries.iter().filter(|(best, table)| *best <= XI && table & earlier == 0).count()
                })
                .sum();
            prop_assert_eq!(lazy, queries.len() + later);
            prop_assert_eq!(plain.questions, lazy + (ROUNDS - 1) * (high_no + low_yes));
        }
    }
}
