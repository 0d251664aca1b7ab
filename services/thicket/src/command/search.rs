use std::collections::BTreeMap;

use serde::Serialize;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    Answer, Hit, Outcome, Priority, QuestionAnswered, SearchFinished, SearchPersonRequest,
};

use super::filter::FilterArgs;
use super::interaction::InteractionArgs;
use super::live::LiveView;
use super::server::ServerArgs;
use crate::client::{self, DEFAULT_COLLECTION};
use crate::{Failure, console};

/// Searches a collection of a running cluster for a described person and shows each step as it happens
#[derive(Debug, clap::Args)]
pub(crate) struct SearchArgs {
    /// The description; several words need no quotes
    #[arg(value_name = "TEXT", required = true)]
    text: Vec<String>,
    /// Collection to search
    #[arg(long, value_name = "C", default_value = DEFAULT_COLLECTION)]
    collection: String,
    /// Results wanted
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    #[command(flatten)]
    interaction: InteractionArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    collection: String,
    text: String,
    hits: Vec<HitDocument>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    anchor: Option<AnchorDocument>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refined_text: Option<String>,
    rounds: Vec<RoundDocument>,
    questions: QuestionDocument,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct HitDocument {
    rank: usize,
    id: String,
    score: f32,
    image_hash: String,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct AnchorDocument {
    id: String,
    round: u32,
}

#[derive(Debug, Serialize)]
struct RoundDocument {
    round: u32,
    id: String,
    p_yes: f64,
    answer: &'static str,
}

#[derive(Debug, Serialize)]
struct QuestionDocument {
    locate: u32,
    describe: u32,
    aggregate: u32,
}

pub(super) async fn run(args: SearchArgs) -> Result<(), Failure> {
    let text = args.text.join(" ");
    let mut coordinator = client::coordinator(&args.server.server, args.server.token())?;
    let request = SearchPersonRequest {
        collection: args.collection.clone(),
        text: text.clone(),
        top: args.top,
        settings: Some(args.interaction.settings()),
        priority: Priority::Interactive.into(),
        adapter: args.interaction.adapter.clone(),
        filter: args.filter.filter(),
    };
    let mut view = LiveView::new(args.json);
    let mut events =
        coordinator.search_person(request).await.map_err(|status| client::failure(&status))?.into_inner();
    let mut rounds = Vec::new();
    while let Some(response) = events.message().await.map_err(|status| client::failure(&status))? {
        let Some(event) = response.event else { continue };
        view.show(&event)?;
        match event {
            Event::QuestionAnswered(answered) => rounds.push(round_document(answered)),
            Event::Finished(finished) => {
                view.close();
                let seconds = response.elapsed_ns as f64 / 1e9;
                return finish(&args, text, finished, rounds, seconds);
            }
            _ => {}
        }
    }
    Err(Failure::failed("the server ended the search without a ranking"))
}

fn finish(
    args: &SearchArgs,
    text: String,
    finished: SearchFinished,
    rounds: Vec<RoundDocument>,
    seconds: f64,
) -> Result<(), Failure> {
    let outcome = finished.outcome();
    if !args.json {
        let mut lines = vec![format!("{} ({seconds:.2} s)", outcome_sentence(outcome))];
        lines.extend((1..).zip(&finished.hits).map(|(rank, hit)| hit_line(rank, hit)));
        return console::print(&lines.join("\n"));
    }
    let questions = finished.questions.unwrap_or_default();
    console::print_json(&Document {
        collection: args.collection.clone(),
        text,
        hits: (1..).zip(finished.hits).map(|(rank, hit)| hit_document(rank, hit)).collect(),
        outcome: outcome_name(outcome),
        anchor: (!finished.anchor_id.is_empty())
            .then_some(AnchorDocument { id: finished.anchor_id, round: finished.anchor_round }),
        refined_text: (!finished.refined_text.is_empty()).then_some(finished.refined_text),
        rounds,
        questions: QuestionDocument {
            locate: questions.locate,
            describe: questions.describe,
            aggregate: questions.aggregate,
        },
        seconds,
    })
}

fn round_document(answered: QuestionAnswered) -> RoundDocument {
    let answer = match answered.answer() {
        Answer::Yes => "yes",
        Answer::No => "no",
        Answer::Unusable | Answer::Unspecified => "unusable",
    };
    RoundDocument { round: answered.round, id: answered.candidate_id, p_yes: answered.p_yes, answer }
}

fn hit_document(rank: usize, hit: Hit) -> HitDocument {
    let item = hit.item.unwrap_or_default();
    HitDocument {
        rank,
        id: item.id,
        score: hit.score,
        image_hash: item.image_hash,
        metadata: item.metadata.into_iter().collect(),
    }
}

fn hit_line(rank: usize, hit: &Hit) -> String {
    let id = hit.item.as_ref().map(|item| item.id.as_str()).unwrap_or_default();
    format!("{rank:>4}  {:.4}  {}", hit.score, client::printable(id))
}

pub(super) fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unspecified",
        Outcome::Refined => "refined",
        Outcome::HighRejected => "high_rejected",
        Outcome::LowConfirmedFirst => "low_confirmed_first",
        Outcome::NoneConfirmed => "none_confirmed",
        Outcome::NoCandidates => "no_candidates",
        Outcome::Disabled => "disabled",
        Outcome::RefinementUnusable => "refinement_unusable",
    }
}

fn outcome_sentence(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "done",
        Outcome::Refined => "ranked again with what the confirmed image showed",
        Outcome::HighRejected => "the best candidate was rejected: first ranking kept",
        Outcome::LowConfirmedFirst => {
            "the best candidate was confirmed, though little alike: first ranking kept"
        }
        Outcome::NoneConfirmed => "no candidate was confirmed: first ranking kept",
        Outcome::NoCandidates => "the collection holds no such image",
        Outcome::Disabled => "ranked once, nothing asked",
        Outcome::RefinementUnusable => {
            "a candidate was confirmed, but nothing usable was said of it: first ranking kept"
        }
    }
}
