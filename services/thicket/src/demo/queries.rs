//! Running every query through the coordinator, a bounded number at a time.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    Answer, Hit, InteractionSettings, Outcome, Priority, QuestionAnswered, QuestionCount, SearchPersonRequest,
};
use thicket_thi::Settings;

use super::page::RESULTS_SHOWN;
use super::sample::Sample;
use crate::Failure;
use crate::client::{self, Coordinator};

/// Searches at a time: enough to keep the models' batches full, few enough to keep the queues short.
const CONCURRENT_SEARCHES: usize = 32;

/// Everything that happened to one query.
#[derive(Debug, Clone)]
pub(super) struct Searched {
    /// All gallery places, best first.
    pub(super) ranking: Vec<usize>,
    /// Scores of the first of them.
    pub(super) scores: Vec<f32>,
    /// Similarity of the best candidate of the first ranking.
    pub(super) best_similarity: f32,
    pub(super) outcome: Outcome,
    /// Round in which an anchor was confirmed and its gallery place.
    pub(super) anchor: Option<(usize, usize)>,
    /// The text that the last ranking was made with beside the original.
    pub(super) refined_text: Option<String>,
    /// The attribute answers about the anchor.
    pub(super) described: Vec<String>,
    /// The questions of each round, in order.
    pub(super) rounds: Vec<Round>,
    pub(super) questions: QuestionCount,
}

/// One localisation question and its answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Round {
    /// Gallery place of the candidate.
    pub(super) candidate: usize,
    pub(super) p_yes: f64,
    pub(super) answer: Answer,
}

impl Searched {
    /// The round that refined the query.
    pub(super) fn refined_in(&self) -> Option<usize> {
        self.anchor.filter(|_| self.outcome == Outcome::Refined).map(|(round, _)| round)
    }
}

/// Runs every query with `settings`, or without interaction. Results come in the order of the queries.
///
/// # Errors
/// [`Failure`] for the first search that fails or whose ranking is not the whole gallery.
pub(super) async fn run(
    coordinator: &Coordinator,
    collection: &str,
    sample: &Arc<Sample>,
    settings: Option<&Settings>,
    mut done: impl FnMut(),
) -> Result<Vec<Searched>, Failure> {
    let settings = match settings {
        None => InteractionSettings { disabled: true, ..Default::default() },
        Some(settings) => InteractionSettings {
            rounds: Some(settings.rounds() as u32),
            xi: Some(settings.xi()),
            lambda: Some(settings.lambda()),
            yes_threshold: Some(settings.yes_threshold()),
            disabled: false,
        },
    };
    let searches = sample.queries.iter().map(|query| {
        let request = SearchPersonRequest {
            collection: collection.to_owned(),
            text: query.text.clone(),
            top: sample.images.len() as u32,
            settings: Some(settings),
            priority: Priority::Batch.into(),
            adapter: String::new(),
            filter: None,
        };
        let search = search(coordinator.clone(), request, sample.clone());
        // A task each, so that the large answers are read on every core.
        async move {
            let mut task = AbortOnDrop(tokio::spawn(search));
            match (&mut task.0).await {
                Ok(searched) => searched,
                Err(error) => Err(Failure::failed(format!("a search stopped early: {error}"))),
            }
        }
    });
    stream::iter(searches).buffered(CONCURRENT_SEARCHES).inspect_ok(|_| done()).try_collect().await
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn search(
    mut coordinator: Coordinator,
    request: SearchPersonRequest,
    sample: Arc<Sample>,
) -> Result<Searched, Failure> {
    let mut events =
        coordinator.search_person(request).await.map_err(|status| client::failure(&status))?.into_inner();
    let mut best_similarity = 0.0;
    let (mut described, mut rounds) = (Vec::new(), Vec::new());
    while let Some(response) = events.message().await.map_err(|status| client::failure(&status))? {
        match response.event {
            Some(Event::CandidatesFound(found)) => {
                best_similarity = found.hits.first().map_or(0.0, |hit| hit.score);
            }
            Some(Event::QuestionAnswered(answered)) => rounds.push(round(&answered, &sample)?),
            Some(Event::AnchorDescribed(anchor)) => described = anchor.answers,
            Some(Event::Finished(finished)) => {
                let anchor = match finished.anchor_id.as_str() {
                    "" => None,
                    id => Some((finished.anchor_round as usize, place(&sample, id)?)),
                };
                return Ok(Searched {
                    outcome: finished.outcome(),
                    ranking: ranking(&finished.hits, &sample)?,
                    scores: finished.hits.iter().take(RESULTS_SHOWN).map(|hit| hit.score).collect(),
                    best_similarity,
                    anchor,
                    refined_text: (!finished.refined_text.is_empty()).then_some(finished.refined_text),
                    described,
                    rounds,
                    questions: finished.questions.unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
    Err(Failure::failed("a search ended without a ranking"))
}

fn round(answered: &QuestionAnswered, sample: &Sample) -> Result<Round, Failure> {
    let candidate = place(sample, &answered.candidate_id)?;
    Ok(Round { candidate, p_yes: answered.p_yes, answer: answered.answer() })
}

fn ranking(hits: &[Hit], sample: &Sample) -> Result<Vec<usize>, Failure> {
    if hits.len() != sample.images.len() {
        let (actual, expected) = (hits.len(), sample.images.len());
        return Err(Failure::failed(format!("a ranking has {actual} images, the gallery {expected}")));
    }
    hits.iter().map(|hit| place(sample, hit.item.as_ref().map_or("", |item| &item.id))).collect()
}

fn place(sample: &Sample, id: &str) -> Result<usize, Failure> {
    sample.place(id).ok_or_else(|| Failure::failed(format!("the image {id:?} is none of the sample's")))
}
