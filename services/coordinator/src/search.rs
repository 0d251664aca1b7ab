//! One person search, from text to final ranking.

use std::time::Instant;

use opentelemetry::KeyValue;
use thicket_dispatch::ImageKey;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    self, AnchorDescribed, CandidatesFound, Hit, QueryRefined, QuestionAnswered, QuestionAsked,
    QuestionCount, SearchFinished, SearchPersonResponse,
};
use thicket_runtime::{Fault, check_text};
use thicket_telemetry::{instruments, names};
use thicket_thi::fusion::{forced_score, mix_queries};
use thicket_thi::{Answer, Candidate, Class, Interaction, Outcome, Refinement, Step};
use tracing::{Instrument, info_span};

use crate::clients::{CallClients, Embedded, Image};
use crate::driven::Outlet;
use crate::input::{MAX_TOP, SearchInput};
use crate::placing::{self, id, place};
use crate::rounds::{Rounds, Subject};
use crate::spans::number;

/// Most ties whose insertion order is asked for at a time; the gallery takes 10,000 ids, the anchor among them.
const TIES_AT_A_TIME: usize = 9_999;

/// A search under way.
#[derive(Debug)]
pub(crate) struct Search {
    input: SearchInput,
    clients: CallClients,
    outlet: Outlet<SearchPersonResponse>,
    started: Instant,
    questions: QuestionCount,
    ask_ahead: usize,
    /// The image of the last question, which is the anchor's when a Yes has confirmed it.
    last_image: Option<(String, Image)>,
}

/// What a confirmed candidate led to.
#[derive(Debug)]
struct Refined {
    text: String,
    vector: Vec<f32>,
}

impl Search {
    pub(crate) fn new(
        input: SearchInput,
        clients: CallClients,
        outlet: Outlet<SearchPersonResponse>,
    ) -> Self {
        let questions = QuestionCount::default();
        Self { input, clients, outlet, started: Instant::now(), questions, ask_ahead: 0, last_image: None }
    }

    /// The same, asking at most so many later rounds ahead while replicas are idle. Changes no event.
    pub(crate) fn asking_ahead(self, ask_ahead: usize) -> Self {
        Self { ask_ahead, ..self }
    }

    /// Runs the search to its last event.
    pub(crate) async fn run(mut self) -> Result<(), Fault> {
        let query = self.clients.embed_text(&self.input.text).await?;
        let wanted = self.input.top.max(self.input.settings.rounds());
        let candidates = self
            .clients
            .search(
                &self.input.collection,
                query.vector.clone(),
                wanted,
                &query.fingerprint,
                self.input.filter.as_ref(),
            )
            .instrument(info_span!("candidates", wanted = number(wanted)))
            .await?;
        let ranked = candidates.iter().enumerate().map(|(id, hit)| Candidate { id, score: hit.score });
        let mut interaction = Interaction::new(&self.input.settings, ranked).map_err(Fault::internal)?;
        self.clients.of_class(interaction.class());
        self.emit(Event::CandidatesFound(CandidatesFound {
            hits: candidates.clone(),
            high_similarity: interaction.class() == Class::High,
            settings: Some(self.input.settings_in_force()),
        }))
        .await?;
        if self.input.disabled {
            return self.finish(candidates, v1::Outcome::Disabled, None, None).await;
        }

        let mut refined = None;
        let mut rounds = Rounds::new(self.subject(&candidates), self.ask_ahead);
        let outcome = loop {
            match interaction.step() {
                Step::Ask(question) => {
                    let candidate = &candidates[question.candidate];
                    let round = u32::try_from(question.round).unwrap_or(u32::MAX);
                    let span = rounds.turn(interaction.ahead(usize::MAX));
                    let answer = self.ask(&mut rounds, round, candidate).instrument(span).await?;
                    interaction.answer(question.round, answer).map_err(Fault::internal)?;
                }
                Step::Refine { round, anchor } => {
                    rounds.stop();
                    refined = self
                        .refine(&candidates[anchor], &query.fingerprint)
                        .instrument(info_span!("refine", round = number(round)))
                        .await?;
                    let result = if refined.is_some() { Refinement::Done } else { Refinement::Unusable };
                    interaction.refined(result).map_err(Fault::internal)?;
                }
                Step::Done(outcome) => break outcome,
            }
        };
        drop(rounds);

        let anchor = match &outcome {
            Outcome::Refined { round, anchor } | Outcome::RefinementUnusable { round, anchor } => {
                Some((*round, candidates[*anchor].clone()))
            }
            _ => None,
        };
        let hits = match (&refined, &anchor) {
            (Some(refined), Some((_, anchor))) => {
                self.rank_again(&query, refined, anchor).instrument(info_span!("rank_again")).await?
            }
            _ => candidates,
        };
        self.finish(hits, to_wire(&outcome), anchor, refined).await
    }

    fn subject(&self, candidates: &[Hit]) -> Subject {
        Subject {
            clients: self.clients.clone(),
            collection: self.input.collection.clone(),
            text: self.input.text.clone(),
            candidates: candidates.to_vec(),
            yes_threshold: self.input.settings.yes_threshold(),
        }
    }

    /// Asks the question whose turn it is: whether the text describes the candidate. One that cannot be looked at counts as
    /// an unusable answer.
    async fn ask(&mut self, rounds: &mut Rounds, round: u32, candidate: &Hit) -> Result<Answer, Fault> {
        if rounds.has_image().await? {
            let asked = QuestionAsked { round, candidate: Some(candidate.clone()) };
            rounds.beside(self.emit(Event::QuestionAsked(asked))).await?;
            self.questions.locate += 1;
        }
        let looked = rounds.looked().await?;
        self.last_image = looked.image.map(|image| (id(candidate).to_owned(), image));
        let answer = rounds.subject().read(looked.response.as_ref());
        let response = looked.response.unwrap_or_default();
        let (wire, name) = match answer {
            Answer::Yes => (v1::Answer::Yes, "yes"),
            Answer::No => (v1::Answer::No, "no"),
            Answer::Unusable => (v1::Answer::Unusable, "unusable"),
        };
        tracing::Span::current().record("answer", name);
        instruments().thi_questions.add(
            1,
            &[
                KeyValue::new(names::ROUND, i64::from(round)),
                KeyValue::new(names::ANSWER, name),
                KeyValue::new(names::SOURCE, "model"),
            ],
        );
        let answered = QuestionAnswered {
            round,
            candidate_id: id(candidate).to_owned(),
            p_yes: if (0.0..=1.0).contains(&response.p_yes) { response.p_yes } else { 0.0 },
            answer: wire.into(),
            raw_text: response.raw_text,
        };
        rounds.beside(self.emit(Event::QuestionAnswered(answered))).await?;
        Ok(answer)
    }

    /// Describes the anchor and merges the answers into the text; `None` where what comes back cannot be searched with.
    async fn refine(&mut self, anchor: &Hit, fingerprint: &str) -> Result<Option<Refined>, Fault> {
        let Some(image) = self.image(anchor).await? else { return Ok(None) };
        self.questions.describe += 1;
        let Some(description) =
            unusable_where_refused(self.clients.describe(image, image_key(anchor)).await)?
        else {
            return Ok(None);
        };
        self.emit(Event::AnchorDescribed(AnchorDescribed {
            anchor_id: id(anchor).to_owned(),
            answers: description.answers.clone(),
            cached: description.cached,
        }))
        .await?;
        if !description.usable {
            return Ok(None);
        }
        self.questions.aggregate += 1;
        let merged = self.clients.aggregate(&self.input.text, description.answers).await;
        let Some(merged) = unusable_where_refused(merged)? else { return Ok(None) };
        if !merged.usable || check_text("text", &merged.text).is_err() {
            return Ok(None);
        }
        let Some(embedded) = unusable_where_refused(self.clients.embed_text(&merged.text).await)? else {
            return Ok(None);
        };
        if embedded.fingerprint != fingerprint {
            let message = "the embedding model changed during the search: search again";
            return Err(Fault::unavailable("MODEL_CHANGED", message, std::time::Duration::ZERO));
        }
        self.emit(Event::QueryRefined(QueryRefined { text: merged.text.clone() })).await?;
        Ok(Some(Refined { text: merged.text, vector: embedded.vector }))
    }

    /// Ranks by both texts: one search with the mixed query, the anchor in its place with its own score (Eq. 6 of the
    /// ICL paper, CVPR 2025).
    async fn rank_again(&self, query: &Embedded, refined: &Refined, anchor: &Hit) -> Result<Vec<Hit>, Fault> {
        let collection = &self.input.collection;
        let lambda = f64::from(self.input.settings.lambda());
        let mixed = mix_queries(&query.vector, &refined.vector, lambda).map_err(Fault::internal)?;
        // One more than wanted: the anchor may be among them under the score that it does not keep.
        let enough = (self.input.top + 1).min(MAX_TOP);
        let (hits, similarity) = tokio::try_join!(
            self.clients.search(collection, mixed, enough, &query.fingerprint, self.input.filter.as_ref()),
            self.clients.score(collection, query.vector.clone(), id(anchor)),
        )?;
        // An anchor that was deleted meanwhile is in no ranking.
        let Some(similarity) = similarity else { return Ok(hits) };
        let score = forced_score(similarity, lambda).map_err(Fault::internal)?;
        let anchor = Hit { score, ..anchor.clone() };
        let older = self.older_ties(&hits, &anchor, query.vector.len()).await?;
        Ok(place(hits, anchor, older, self.input.top))
    }

    /// How many of the hits that tie with the anchor were inserted before it.
    async fn older_ties(&self, hits: &[Hit], anchor: &Hit, dimension: usize) -> Result<usize, Fault> {
        let ties: Vec<String> = placing::ties(hits, anchor).map(|hit| id(hit).to_owned()).collect();
        let mut older = 0;
        for some in ties.chunks(TIES_AT_A_TIME) {
            let ids = [&[id(anchor).to_owned()], some].concat();
            let places = self.clients.insertion_places(&self.input.collection, dimension, ids).await?;
            let Some([own, others @ ..]) = places.as_deref() else { break };
            let before = others.iter().filter(|place| *place < own).count();
            older += before;
            if before < others.len() {
                break;
            }
        }
        Ok(older)
    }

    async fn image(&mut self, hit: &Hit) -> Result<Option<Image>, Fault> {
        if let Some((owner, image)) = &self.last_image
            && owner == id(hit)
        {
            return Ok(Some(image.clone()));
        }
        let image = self.clients.image(&self.input.collection, id(hit)).await?;
        self.last_image = image.clone().map(|image| (id(hit).to_owned(), image));
        Ok(image)
    }

    async fn finish(
        &self,
        mut hits: Vec<Hit>,
        outcome: v1::Outcome,
        anchor: Option<(usize, Hit)>,
        refined: Option<Refined>,
    ) -> Result<(), Fault> {
        hits.truncate(self.input.top);
        let (round, anchor_id) =
            anchor.map_or((0, String::new()), |(round, anchor)| (round, id(&anchor).to_owned()));
        self.emit(Event::Finished(SearchFinished {
            hits,
            outcome: outcome.into(),
            anchor_id,
            anchor_round: u32::try_from(round).unwrap_or(u32::MAX),
            refined_text: refined.map_or(String::new(), |refined| refined.text),
            questions: Some(self.questions),
        }))
        .await
    }

    async fn emit(&self, event: Event) -> Result<(), Fault> {
        let elapsed_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.outlet.send(SearchPersonResponse { elapsed_ns, event: Some(event) }).await
    }
}

/// The image by the hash that the gallery gives it: hashing the image itself would take an async thread's time.
pub(crate) fn image_key(hit: &Hit) -> ImageKey {
    let hash = hit.item.as_ref().map_or("", |item| item.image_hash.as_str());
    ImageKey::of(if hash.is_empty() { id(hit) } else { hash }.as_bytes())
}

/// Nothing where a model role refuses what it was given: it came from the gallery or from the model itself, so the query
/// goes on without it.
pub(crate) fn unusable_where_refused<T>(result: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(fault @ (Fault::InvalidInput { .. } | Fault::OutOfRange { .. })) => {
            tracing::warn!(reason = %fault.reason(), "a model role refused its input");
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}

fn to_wire(outcome: &Outcome<usize>) -> v1::Outcome {
    match outcome {
        Outcome::Refined { .. } => v1::Outcome::Refined,
        Outcome::RefinementUnusable { .. } => v1::Outcome::RefinementUnusable,
        Outcome::HighRejected => v1::Outcome::HighRejected,
        Outcome::LowAcceptedFirst => v1::Outcome::LowConfirmedFirst,
        Outcome::Exhausted => v1::Outcome::NoneConfirmed,
        Outcome::NoCandidates => v1::Outcome::NoCandidates,
    }
}
