//! Results as they are stored, made from what a search ends with and read back for callers.

use thicket_jobs::Counts;
use thicket_proto::v1::fetch_job_results_response::Result as Fetched;
use thicket_proto::v1::{FetchJobResultsResponse, ItemError, JobRanking, Outcome, QuestionCount, RankedItem};
use thicket_rankings::{Anchor, Item, QueryError, Ranking, Row};
use thicket_runtime::Fault;
use thicket_telemetry::code_name;
use tonic::Code;

use super::query::Found;

const OUTCOME: &str = "OUTCOME_";

/// The row of a query.
pub(super) fn row(position: u64, query_id: String, result: Result<Found, Fault>) -> Row {
    Row { position, query_id, result: result.map(ranking).map_err(|fault| error(&fault)) }
}

/// How many rows are of either kind.
pub(super) fn counts(rows: &[Row]) -> Counts {
    let succeeded = rows.iter().filter(|row| row.result.is_ok()).count() as u64;
    Counts { succeeded, failed: rows.len() as u64 - succeeded }
}

fn ranking(found: Found) -> Ranking {
    let Found { finished, anchor_image } = found;
    let questions = finished.questions.unwrap_or_default();
    let outcome = finished.outcome().as_str_name();
    let name = outcome.strip_prefix(OUTCOME).unwrap_or(outcome).to_ascii_lowercase();
    Ranking {
        items: finished
            .hits
            .into_iter()
            .map(|hit| {
                let item = hit.item.unwrap_or_default();
                Item { id: item.id, image: item.image_hash, score: hit.score }
            })
            .collect(),
        outcome: name,
        anchor: (!finished.anchor_id.is_empty()).then_some(Anchor {
            id: finished.anchor_id,
            image: anchor_image,
            round: finished.anchor_round,
        }),
        refined_text: Some(finished.refined_text).filter(|text| !text.is_empty()),
        questions: [questions.locate, questions.describe, questions.aggregate],
    }
}

fn error(fault: &Fault) -> QueryError {
    let message = match fault {
        // The id of the log line is another in every run, and the results of two runs are to be alike.
        Fault::Internal { .. } => "internal error".to_owned(),
        fault => fault.to_string(),
    };
    QueryError { code: code_name(fault.code()).to_owned(), reason: fault.reason().into_owned(), message }
}

/// A row as callers get it.
pub(super) fn response(row: Row) -> FetchJobResultsResponse {
    let result = match row.result {
        Ok(ranking) => Fetched::Ranking(job_ranking(ranking)),
        Err(error) => Fetched::Error(ItemError {
            code: code_named(&error.code) as i32,
            reason: error.reason,
            message: error.message,
        }),
    };
    FetchJobResultsResponse { position: row.position, query_id: row.query_id, result: Some(result) }
}

fn job_ranking(ranking: Ranking) -> JobRanking {
    let outcome = format!("{OUTCOME}{}", ranking.outcome.to_ascii_uppercase());
    let (anchor_id, anchor_round) =
        ranking.anchor.map_or_else(Default::default, |anchor| (anchor.id, anchor.round));
    let [locate, describe, aggregate] = ranking.questions;
    JobRanking {
        items: ranking.items.into_iter().map(|Item { id, score, .. }| RankedItem { id, score }).collect(),
        outcome: Outcome::from_str_name(&outcome).unwrap_or_default().into(),
        anchor_id,
        anchor_round,
        refined_text: ranking.refined_text.unwrap_or_default(),
        questions: Some(QuestionCount { locate, describe, aggregate }),
    }
}

fn code_named(name: &str) -> Code {
    (0..=16).map(Code::from_i32).find(|code| code_name(*code) == name).unwrap_or(Code::Unknown)
}

#[cfg(test)]
mod tests {
    use thicket_proto::v1::{Hit, Item, SearchFinished};

    use super::*;

    #[test]
    fn a_search_comes_back_from_its_row() {
        let hit = |id: &str, score| Hit { item: Some(Item { id: id.into(), ..Item::default() }), score };
        let finished = SearchFinished {
            hits: vec![hit("a", 0.5), hit("b", 0.25)],
            outcome: Outcome::LowConfirmedFirst.into(),
            anchor_id: "a".into(),
            anchor_round: 1,
            refined_text: String::new(),
            questions: Some(QuestionCount { locate: 1, describe: 0, aggregate: 0 }),
        };
        let stored = row(7, "q".into(), Ok(Found { finished, anchor_image: "cafe".into() }));
        assert_eq!(stored.result.as_ref().unwrap().outcome, "low_confirmed_first");
        let response = response(stored);
        let Some(Fetched::Ranking(ranking)) = response.result else { panic!("{response:?}") };
        assert_eq!(ranking.outcome(), Outcome::LowConfirmedFirst);
        let items: Vec<_> = ranking.items.iter().map(|item| (item.id.as_str(), item.score)).collect();
        assert_eq!(items, [("a", 0.5), ("b", 0.25)]);
        assert_eq!((ranking.anchor_id.as_str(), ranking.anchor_round), ("a", 1));
    }

    #[test]
    fn a_failure_keeps_its_code_and_reason_and_nothing_of_one_run() {
        let stored = row(0, "q".into(), Err(Fault::invalid("text", "TEXT_EMPTY", "1 byte or more")));
        let Some(Fetched::Error(error)) = response(stored).result else { panic!("an error") };
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as i32, "TEXT_EMPTY"));
        let [one, other] = ["1", "2"].map(|id| row(0, "q".into(), Err(Fault::Internal { id: id.into() })));
        assert_eq!(one, other);
    }
}
