use rand::Rng;
use thicket_dispatch::ImageKey;
use thicket_thi::{Answer, Candidate, ranking};

use crate::{Candidates, Scenario};

/// How far from xi the best score of a drawn query is, and its further ones from each other.
const STEP: f32 = 1e-3;

/// The queries of a run with every answer that could be asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Cohort {
    scores: Scores,
    /// Row-major `[queries, rounds]`.
    answers: Vec<Answer>,
    rounds: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Scores {
    /// Row-major `[queries, gallery]`, in thousandths: equal scores happen, as they do in galleries.
    Ranked { similarity: Vec<u16>, gallery: usize },
    /// Of each query its best images, row-major `[queries, each]`, and its best score.
    Drawn { images: Vec<usize>, each: usize, best: Vec<f32> },
}

impl Cohort {
    /// Draws one.
    pub(crate) fn draw(scenario: &Scenario, rng: &mut impl Rng) -> Self {
        let (gallery, rounds) = (scenario.gallery, scenario.thi.rounds());
        let scores = match scenario.candidates {
            Candidates::Ranked => {
                let similarity = (0..scenario.queries * gallery).map(|_| rng.random_range(0..1000)).collect();
                Scores::Ranked { similarity, gallery }
            }
            Candidates::Drawn { high } => {
                let each = rounds.min(gallery);
                let mut images = Vec::with_capacity(scenario.queries * each);
                for _ in 0..scenario.queries {
                    let row = images.len();
                    while images.len() < row + each {
                        let image = rng.random_range(0..gallery);
                        if !images[row..].contains(&image) {
                            images.push(image);
                        }
                    }
                }
                let xi = scenario.thi.xi();
                let best = |_| if rng.random::<f64>() < high { xi + STEP } else { xi - STEP };
                let best = (0..scenario.queries).map(best).collect();
                Scores::Drawn { images, each, best }
            }
        };
        let mut answer = || match rng.random::<f64>() {
            drawn if drawn < scenario.yes => Answer::Yes,
            drawn if drawn > 0.98 => Answer::Unusable,
            _ => Answer::No,
        };
        let answers = (0..scenario.queries * rounds).map(|_| answer()).collect();
        Self { scores, answers, rounds }
    }

    /// The similarity of every image to every query, row-major `[queries, gallery]`, 0 to 1; empty with
    /// [`Candidates::Drawn`].
    #[must_use]
    pub fn similarity(&self) -> Vec<f32> {
        match &self.scores {
            Scores::Ranked { similarity, .. } => similarity.iter().copied().map(score).collect(),
            Scores::Drawn { .. } => Vec::new(),
        }
    }

    /// The answer about the candidate of a round, from 1.
    #[must_use]
    pub fn answer(&self, query: usize, round: usize) -> Answer {
        self.answers[query * self.rounds + round - 1]
    }

    /// The candidates of a query, best first; each is named by its place in the gallery.
    #[must_use]
    pub fn candidates(&self, query: usize) -> Vec<Candidate<usize>> {
        match &self.scores {
            Scores::Ranked { similarity, gallery } => {
                let row = similarity[query * gallery..][..*gallery].iter().copied();
                let row: Vec<f32> = row.map(score).collect();
                // No score is NaN.
                let top = ranking::top(&row, self.rounds).unwrap_or_default();
                top.into_iter().map(|id| Candidate { id, score: row[id] }).collect()
            }
            Scores::Drawn { images, each, best } => {
                let images = images[query * each..][..*each].iter().enumerate();
                let score = |place: usize| best[query] - place as f32 * STEP;
                images.map(|(place, id)| Candidate { id: *id, score: score(place) }).collect()
            }
        }
    }

    /// What the dispatcher knows an image by.
    pub(crate) fn image(id: usize) -> ImageKey {
        ImageKey::of(&id.to_le_bytes())
    }
}

fn score(thousandths: u16) -> f32 {
    f32::from(thousandths) / 1000.0
}
