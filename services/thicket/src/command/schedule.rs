use std::path::PathBuf;

use serde::Serialize;
use thicket_thi::{DEFAULT_LAMBDA, DEFAULT_YES_THRESHOLD, Settings, decide_all};

use crate::{Failure, console, npy};

/// The method's decisions, given the answer to every question that could be asked
#[derive(Debug, clap::Args)]
pub(crate) struct ScheduleArgs {
    /// Similarity of every query (row) to every gallery image (column), float32 or float64
    #[arg(long, value_name = "S.npy")]
    similarity: PathBuf,
    /// uint8 [queries, rounds]: 1 where the answer about the query's k-th candidate is Yes
    #[arg(long, value_name = "Y.npy")]
    answers: PathBuf,
    /// Similarity threshold: above it a query is refined in round 1 only, otherwise in later rounds only
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    xi: f32,
    /// Candidates looked at, one a round, 1 to 100
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    rounds: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    /// Gallery index of each query's anchor, -1 where the query stays as it is.
    anchors: Vec<i64>,
    /// Localisation questions that have to be asked.
    questions: usize,
}

pub(super) fn run(args: ScheduleArgs) -> Result<(), Failure> {
    let settings = Settings::new(args.rounds, args.xi, DEFAULT_LAMBDA, DEFAULT_YES_THRESHOLD)
        .map_err(Failure::bad_input)?;
    let similarity = npy::read_floats("similarity", &args.similarity).map_err(Failure::bad_input)?;
    let answers = npy::read_flags("answers", &args.answers).map_err(Failure::bad_input)?;
    if (answers.rows, answers.columns) != (similarity.rows, settings.rounds()) {
        return Err(Failure::bad_input(format!(
            "answers: {} has shape [{}, {}], [{}, {}] expected ({} queries, {} rounds)",
            args.answers.display(),
            answers.rows,
            answers.columns,
            similarity.rows,
            settings.rounds(),
            similarity.rows,
            settings.rounds()
        )));
    }
    let decisions =
        decide_all(&similarity.values, similarity.rows, similarity.columns, &answers.values, &settings)
            .map_err(|error| Failure::bad_input(format!("{}: {error}", args.similarity.display())))?;

    let anchors = decisions.anchors.iter().map(|anchor| anchor.map_or(-1, |index| index as i64)).collect();
    let document = Document { anchors, questions: decisions.questions };
    if args.json {
        return console::print_json(&document);
    }
    let refined = decisions.anchors.iter().flatten().count();
    let mut lines = vec![format!(
        "{} queries: {refined} refined, {} questions asked",
        similarity.rows, decisions.questions
    )];
    lines.extend(decisions.anchors.iter().zip(&decisions.rounds).enumerate().filter_map(
        |(query, (anchor, round))| {
            Some(format!("query {query}: anchor {} in round {}", (*anchor)?, (*round)?))
        },
    ));
    console::print(&lines.join("\n"))
}
