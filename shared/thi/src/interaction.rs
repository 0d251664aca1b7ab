use serde::{Deserialize, Serialize};

use crate::Settings;
use crate::prompts::is_yes;

/// A gallery image the interaction may look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<Id> {
    /// The caller's name for it.
    pub id: Id,
    /// Similarity to the original query, not NaN.
    pub score: f32,
}

/// Which rounds can refine a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The best candidate's similarity is above xi: only round 1 can refine.
    High,
    /// It is at or below xi: only rounds after the first can, and only if the first answer was No.
    Low,
}

impl Class {
    /// Compares the best similarity with the threshold, strictly and in f32 as the official code does.
    pub fn of(best: f32, xi: f32) -> Self {
        if best > xi { Self::High } else { Self::Low }
    }
}

/// The answer to "does the text describe this candidate?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The candidate is the person.
    Yes,
    /// It is not.
    No,
    /// The model gave nothing that can be read as an answer. Counts as No.
    Unusable,
}

impl Answer {
    /// Reads a probability of Yes; anything that is not a probability is [`Answer::Unusable`].
    pub fn from_p_yes(p_yes: f64, yes_threshold: f64) -> Self {
        match p_yes {
            p if !(0.0..=1.0).contains(&p) => Self::Unusable,
            p if p > yes_threshold => Self::Yes,
            _ => Self::No,
        }
    }

    /// Reads a generated text: Yes if it contains "yes" in any case, No if it has the word "no", else
    /// [`Answer::Unusable`].
    pub fn from_text(text: &str) -> Self {
        let says_no =
            || text.split(|c: char| !c.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case("no"));
        if is_yes(text) {
            Self::Yes
        } else if says_no() {
            Self::No
        } else {
            Self::Unusable
        }
    }

    /// What the method makes of it: only a Yes confirms a candidate.
    pub fn confirms(self) -> bool {
        self == Self::Yes
    }
}

/// Whether the confirmed candidate led to a text that can be searched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refinement {
    /// The query was rewritten.
    Done,
    /// The description or the rewritten text was empty or garbage; the query stays as it was.
    Unusable,
}

/// A localisation question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question<Id> {
    /// Round, from 1; also the candidate's place in the first ranking.
    pub round: usize,
    /// The candidate to look at.
    pub candidate: Id,
}

/// What has to happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<Id> {
    /// Ask about a candidate and report it with [`Interaction::answer`].
    Ask(Question<Id>),
    /// Describe the anchor, rewrite the query and report it with [`Interaction::refined`].
    Refine {
        /// Round in which the anchor was confirmed, from 1.
        round: usize,
        /// The confirmed candidate.
        anchor: Id,
    },
    /// Nothing more.
    Done(Outcome<Id>),
}

/// How an interaction ended. Only [`Outcome::Refined`] changes the ranking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome<Id> {
    /// The query was rewritten from a confirmed candidate.
    Refined {
        /// Round, from 1.
        round: usize,
        /// The confirmed candidate.
        anchor: Id,
    },
    /// A candidate was confirmed, but the description or the rewritten text was unusable.
    RefinementUnusable {
        /// Round, from 1.
        round: usize,
        /// The confirmed candidate.
        anchor: Id,
    },
    /// High similarity and the first candidate was rejected.
    HighRejected,
    /// Low similarity and the first candidate was accepted. The method leaves such a query alone.
    LowAcceptedFirst,
    /// Every candidate was rejected.
    Exhausted,
    /// There was nothing to look at.
    NoCandidates,
}

impl<Id> Outcome<Id> {
    /// Round and anchor of a refined query.
    pub fn refined(&self) -> Option<(usize, &Id)> {
        match self {
            Self::Refined { round, anchor } => Some((*round, anchor)),
            _ => None,
        }
    }

    /// Questions that a script which asks every open query in every round would have asked about this query, given
    /// its number of candidates.
    pub fn round_by_round_questions(&self, candidates: usize) -> usize {
        match self {
            Self::Refined { round, .. } | Self::RefinementUnusable { round, .. } => *round,
            Self::HighRejected | Self::LowAcceptedFirst | Self::Exhausted => candidates,
            Self::NoCandidates => 0,
        }
    }
}

/// Misuse of an [`Interaction`], or input it cannot rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InteractionError {
    /// A candidate's score is NaN.
    #[error("the score of candidate {position} is not a number")]
    ScoreNotANumber {
        /// Place of the candidate, from 0.
        position: usize,
    },
    /// An answer to a question that this interaction can never ask.
    #[error("round {round} is never asked: this query has rounds 1 to {limit}")]
    UnknownRound {
        /// The round that was answered, from 1.
        round: usize,
        /// The last round that can be asked.
        limit: usize,
    },
    /// A second answer to one question.
    #[error("round {round} was answered already")]
    AlreadyAnswered {
        /// The round, from 1.
        round: usize,
    },
    /// A refinement was reported that was not asked for.
    #[error("the query has no confirmed candidate that waits to be refined")]
    NotRefining,
}

/// The interaction of one query, as a state machine (Algorithm 1 of the ICL paper, CVPR 2025, asked lazily).
///
/// A question is asked only if its answer can change the result: round 1 always, a later round only for a query of
/// low similarity whose earlier answers were all No. The result is the one of [`crate::plain`], which asks more.
///
/// Its state is the table of answers so far, so that answers to questions asked ahead ([`Interaction::ahead`]) may
/// arrive in any order: the first Yes in candidate order wins.
#[derive(Debug, Clone)]
pub struct Interaction<Id> {
    class: Class,
    candidates: Vec<Candidate<Id>>,
    answers: Vec<Option<Answer>>,
    refinement: Option<Refinement>,
}

impl<Id: Clone> Interaction<Id> {
    /// Starts with the candidates, best first; only the first `settings.rounds()` are used, and there may be fewer or
    /// none. They never change afterwards.
    ///
    /// # Errors
    /// [`InteractionError::ScoreNotANumber`] where a used candidate's score is NaN.
    pub fn new(
        settings: &Settings,
        candidates: impl IntoIterator<Item = Candidate<Id>>,
    ) -> Result<Self, InteractionError> {
        let candidates: Vec<_> = candidates.into_iter().take(settings.rounds()).collect();
        if let Some(position) = candidates.iter().position(|candidate| candidate.score.is_nan()) {
            return Err(InteractionError::ScoreNotANumber { position });
        }
        let class =
            candidates.first().map_or(Class::Low, |candidate| Class::of(candidate.score, settings.xi()));
        let answers = vec![None; candidates.len()];
        Ok(Self { class, candidates, answers, refinement: None })
    }

    /// The class of the query. Without a candidate it is [`Class::Low`].
    pub fn class(&self) -> Class {
        self.class
    }

    /// The candidates in use, best first.
    pub fn candidates(&self) -> &[Candidate<Id>] {
        &self.candidates
    }

    /// The answer of each round so far, round 1 first; `None` where none was reported.
    pub fn answers(&self) -> &[Option<Answer>] {
        &self.answers
    }

    /// Answers reported so far.
    pub fn questions_answered(&self) -> usize {
        self.answers.iter().flatten().count()
    }

    /// Answers reported so far that could not be read and were counted as No.
    pub fn unusable_answers(&self) -> usize {
        self.answers.iter().filter(|answer| **answer == Some(Answer::Unusable)).count()
    }

    /// What has to happen next; [`Step::Done`] for ever once the interaction has ended.
    pub fn step(&self) -> Step<Id> {
        if self.candidates.is_empty() {
            return Step::Done(Outcome::NoCandidates);
        }
        for (position, answer) in self.answers.iter().enumerate() {
            let first = position == 0;
            match (answer, self.class) {
                (None, _) => return Step::Ask(self.question(position)),
                (Some(Answer::Yes), Class::Low) if first => return Step::Done(Outcome::LowAcceptedFirst),
                (Some(Answer::Yes), _) => return self.confirmed(position),
                (Some(Answer::No | Answer::Unusable), Class::High) => {
                    return Step::Done(Outcome::HighRejected);
                }
                (Some(Answer::No | Answer::Unusable), Class::Low) => {}
            }
        }
        Step::Done(Outcome::Exhausted)
    }

    /// Up to `limit` unanswered questions that may still matter, the next one first. More than one only for a query
    /// of low similarity whose first answer was No; asking them before their turn changes no result, it only risks
    /// asking in vain.
    pub fn ahead(&self, limit: usize) -> Vec<Question<Id>> {
        let Step::Ask(next) = self.step() else { return Vec::new() };
        let first_yes = self.answers.iter().position(|answer| *answer == Some(Answer::Yes));
        let end = match next.round {
            1 => 1,
            _ => first_yes.unwrap_or(self.candidates.len()),
        };
        (next.round - 1..end)
            .filter(|position| self.answers[*position].is_none())
            .take(limit)
            .map(|position| self.question(position))
            .collect()
    }

    /// Reports the answer of a round (from 1) and returns what has to happen next. An answer that turns out not to
    /// matter, because an earlier round said Yes, is kept and changes nothing.
    ///
    /// # Errors
    /// [`InteractionError::UnknownRound`] and [`InteractionError::AlreadyAnswered`]; the state is unchanged then.
    pub fn answer(&mut self, round: usize, answer: Answer) -> Result<Step<Id>, InteractionError> {
        let limit = match self.class {
            Class::High => self.candidates.len().min(1),
            Class::Low => self.candidates.len(),
        };
        if !(1..=limit).contains(&round) {
            return Err(InteractionError::UnknownRound { round, limit });
        }
        let slot = &mut self.answers[round - 1];
        if slot.is_some() {
            return Err(InteractionError::AlreadyAnswered { round });
        }
        *slot = Some(answer);
        Ok(self.step())
    }

    /// Reports how the refinement asked for by [`Step::Refine`] went and returns the end of the interaction.
    ///
    /// # Errors
    /// [`InteractionError::NotRefining`] where none was asked for.
    pub fn refined(&mut self, refinement: Refinement) -> Result<Step<Id>, InteractionError> {
        match self.step() {
            Step::Refine { .. } => {
                self.refinement = Some(refinement);
                Ok(self.step())
            }
            Step::Ask(_) | Step::Done(_) => Err(InteractionError::NotRefining),
        }
    }

    fn question(&self, position: usize) -> Question<Id> {
        Question { round: position + 1, candidate: self.candidates[position].id.clone() }
    }

    fn confirmed(&self, position: usize) -> Step<Id> {
        let Question { round, candidate: anchor } = self.question(position);
        match self.refinement {
            None => Step::Refine { round, anchor },
            Some(Refinement::Done) => Step::Done(Outcome::Refined { round, anchor }),
            Some(Refinement::Unusable) => Step::Done(Outcome::RefinementUnusable { round, anchor }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interaction(scores: &[f32], xi: f32) -> Interaction<usize> {
        let settings = Settings::new(5, xi, 0.8, 0.5).unwrap();
        let candidates = scores.iter().enumerate().map(|(id, &score)| Candidate { id, score });
        Interaction::new(&settings, candidates).unwrap()
    }

    fn high() -> Interaction<usize> {
        interaction(&[0.9, 0.8, 0.7], 0.5)
    }

    fn low() -> Interaction<usize> {
        interaction(&[0.4, 0.3, 0.2], 0.5)
    }

    #[test]
    fn a_high_query_refines_from_the_first_candidate() {
        let mut query = high();
        assert_eq!(query.step(), Step::Ask(Question { round: 1, candidate: 0 }));
        assert_eq!(query.answer(1, Answer::Yes), Ok(Step::Refine { round: 1, anchor: 0 }));
        assert_eq!(query.refined(Refinement::Done), Ok(Step::Done(Outcome::Refined { round: 1, anchor: 0 })));
    }

    #[test]
    fn a_rejected_high_query_ends_after_one_question() {
        assert_eq!(high().answer(1, Answer::No), Ok(Step::Done(Outcome::HighRejected)));
    }

    #[test]
    fn a_low_query_whose_first_candidate_is_accepted_is_left_alone() {
        assert_eq!(low().answer(1, Answer::Yes), Ok(Step::Done(Outcome::LowAcceptedFirst)));
    }

    #[test]
    fn a_low_query_refines_from_the_first_later_yes() {
        let mut query = low();
        query.answer(1, Answer::No).unwrap();
        query.answer(2, Answer::No).unwrap();
        assert_eq!(query.answer(3, Answer::Yes), Ok(Step::Refine { round: 3, anchor: 2 }));
    }

    #[test]
    fn a_low_query_without_a_yes_is_exhausted() {
        let mut query = low();
        query.answer(1, Answer::No).unwrap();
        query.answer(2, Answer::No).unwrap();
        assert_eq!(query.answer(3, Answer::No), Ok(Step::Done(Outcome::Exhausted)));
    }

    #[test]
    fn a_score_equal_to_xi_is_low() {
        assert_eq!(interaction(&[0.5], 0.5).class(), Class::Low);
        assert_eq!(interaction(&[0.5f32.next_up()], 0.5).class(), Class::High);
    }

    #[test]
    fn an_unusable_answer_counts_as_no_and_is_reported() {
        let mut query = low();
        assert_eq!(query.answer(1, Answer::Unusable), Ok(Step::Ask(Question { round: 2, candidate: 1 })));
        assert_eq!(query.unusable_answers(), 1);
    }

    #[test]
    fn an_unusable_refinement_leaves_the_query_unrefined() {
        let mut query = high();
        query.answer(1, Answer::Yes).unwrap();
        let end = query.refined(Refinement::Unusable).unwrap();
        let outcome = Outcome::RefinementUnusable { round: 1, anchor: 0 };
        assert_eq!(outcome.refined(), None);
        assert_eq!(end, Step::Done(outcome));
    }

    #[test]
    fn an_empty_gallery_ends_at_once() {
        assert_eq!(interaction(&[], 0.5).step(), Step::Done(Outcome::NoCandidates));
    }

    #[test]
    fn a_gallery_smaller_than_the_rounds_is_exhausted_earlier() {
        let mut query = interaction(&[0.1], 0.5);
        assert_eq!(query.answer(1, Answer::No), Ok(Step::Done(Outcome::Exhausted)));
    }

    #[test]
    fn candidates_beyond_the_rounds_are_not_looked_at() {
        assert_eq!(interaction(&[0.1; 9], 0.5).candidates().len(), 5);
    }

    #[test]
    fn a_nan_score_is_refused() {
        let settings = Settings::default();
        let candidates = [Candidate { id: 0, score: 0.5 }, Candidate { id: 1, score: f32::NAN }];
        assert_eq!(
            Interaction::new(&settings, candidates).unwrap_err(),
            InteractionError::ScoreNotANumber { position: 1 }
        );
    }

    #[test]
    fn an_answer_nobody_asked_for_is_refused() {
        assert_eq!(high().answer(2, Answer::Yes), Err(InteractionError::UnknownRound { round: 2, limit: 1 }));
        assert_eq!(low().answer(0, Answer::Yes), Err(InteractionError::UnknownRound { round: 0, limit: 3 }));
        let mut query = low();
        query.answer(1, Answer::No).unwrap();
        assert_eq!(query.answer(1, Answer::Yes), Err(InteractionError::AlreadyAnswered { round: 1 }));
        assert_eq!(query.refined(Refinement::Done), Err(InteractionError::NotRefining));
    }

    #[test]
    fn nothing_is_asked_ahead_of_the_first_answer() {
        assert_eq!(low().ahead(9).len(), 1);
        assert_eq!(high().ahead(9).len(), 1);
    }

    #[test]
    fn answers_that_arrive_out_of_order_give_the_first_yes_in_candidate_order() {
        let mut query = low();
        query.answer(1, Answer::No).unwrap();
        assert_eq!(query.ahead(9).iter().map(|question| question.round).collect::<Vec<_>>(), [2, 3]);
        assert!(matches!(query.answer(3, Answer::Yes), Ok(Step::Ask(Question { round: 2, .. }))));
        assert_eq!(query.answer(2, Answer::Yes), Ok(Step::Refine { round: 2, anchor: 1 }));
    }

    #[test]
    fn a_yes_asked_ahead_leaves_only_the_earlier_questions() {
        let mut query = interaction(&[0.4, 0.3, 0.2, 0.1], 0.5);
        query.answer(1, Answer::No).unwrap();
        query.answer(3, Answer::Yes).unwrap();
        assert_eq!(query.ahead(9), [Question { round: 2, candidate: 1 }]);
    }

    #[test]
    fn only_a_probability_above_the_threshold_is_yes() {
        assert_eq!(Answer::from_p_yes(0.5, 0.5), Answer::No);
        assert_eq!(Answer::from_p_yes(0.51, 0.5), Answer::Yes);
        assert_eq!(Answer::from_p_yes(f64::NAN, 0.5), Answer::Unusable);
        assert_eq!(Answer::from_p_yes(1.1, 0.5), Answer::Unusable);
    }

    #[test]
    fn a_text_that_says_neither_word_is_unusable() {
        assert_eq!(Answer::from_text("YES, it does."), Answer::Yes);
        assert_eq!(Answer::from_text("No."), Answer::No);
        assert_eq!(Answer::from_text("a notable coat"), Answer::Unusable);
        assert_eq!(Answer::from_text("  "), Answer::Unusable);
    }
}
