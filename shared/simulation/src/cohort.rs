use rand::Rng;
use thicket_dispatch::ImageKey;
use thicket_thi::{Answer, Candidate, ranking};

use crate::Scenario;

/// The queries of a run with every answer that could be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cohort {
    /// Row-major `[queries, gallery]`, in thousandths: equal scores happen, as they do in galleries.
    similarity: Vec<u16>,
    gallery: usize,
    /// Row-major `[queries, rounds]`.
    answers: Vec<Answer>,
    rounds: usize,
}

impl Cohort {
    /// Draws one.
    pub(crate) fn draw(scenario: &Scenario, rng: &mut impl Rng) -> Self {
        let (gallery, rounds) = (scenario.gallery, scenario.thi.rounds());
        let similarity = (0..scenario.queries * gallery).map(|_| rng.random_range(0..1000)).collect();
        let mut answer = || match rng.random::<f64>() {
            drawn if drawn < scenario.yes => Answer::Yes,
            drawn if drawn > 0.98 => Answer::Unusable,
            _ => Answer::No,
        };
        let answers = (0..scenario.queries * rounds).map(|_| answer()).collect();
        Self { similarity, gallery, answers, rounds }
    }

    /// The similarity of every image to every query, row-major `[queries, gallery]`, 0 to 1.
    #[must_use]
    pub fn similarity(&self) -> Vec<f32> {
        self.similarity.iter().copied().map(score).collect()
    }

    /// The answer about the candidate of a round, from 1.
    #[must_use]
    pub fn answer(&self, query: usize, round: usize) -> Answer {
        self.answers[query * self.rounds + round - 1]
    }

    /// The candidates of a query, best first; each is named by its place in the gallery.
    #[must_use]
    pub fn candidates(&self, query: usize) -> Vec<Candidate<usize>> {
        let row: Vec<f32> = self.row(query).iter().copied().map(score).collect();
        // No score is NaN.
        let top = ranking::top(&row, self.rounds).unwrap_or_default();
        top.into_iter().map(|id| Candidate { id, score: row[id] }).collect()
    }

    fn row(&self, query: usize) -> &[u16] {
        &self.similarity[query * self.gallery..][..self.gallery]
    }

    /// What the dispatcher knows an image by.
    pub(crate) fn image(id: usize) -> ImageKey {
        ImageKey::of(&id.to_le_bytes())
    }
}

fn score(thousandths: u16) -> f32 {
    f32::from(thousandths) / 1000.0
}
