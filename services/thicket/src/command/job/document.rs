use std::collections::BTreeMap;

use serde::Serialize;
use thicket_proto::v1::fetch_job_results_response::Result as Fetched;
use thicket_proto::v1::{FetchJobResultsResponse, ItemError, Job, JobRanking, JobState};

use crate::client::printable;
use crate::command::search::outcome_name;

/// A job as scripts see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct JobDocument {
    pub(super) id: String,
    pub(super) state: &'static str,
    collection: String,
    top: u32,
    part_size: u32,
    created_unix_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_unix_ms: Option<i64>,
    pub(super) parts: BTreeMap<&'static str, u32>,
    pub(super) queries: BTreeMap<&'static str, u64>,
}

impl From<&Job> for JobDocument {
    fn from(job: &Job) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let (parts, queries) = (job.parts.unwrap_or_default(), job.queries.unwrap_or_default());
        Self {
            id: spec.id,
            state: state_name(job.state()),
            collection: spec.collection,
            top: spec.top,
            part_size: spec.part_size,
            created_unix_ms: job.created_unix_ms,
            deadline_unix_ms: spec.deadline_unix_ms,
            parts: [("pending", parts.pending), ("leased", parts.leased), ("done", parts.done)].into(),
            queries: [("total", queries.total), ("succeeded", queries.succeeded), ("failed", queries.failed)]
                .into(),
        }
    }
}

impl JobDocument {
    /// The job in a line for a person.
    pub(super) fn line(&self) -> String {
        let [total, succeeded, failed] =
            ["total", "succeeded", "failed"].map(|name| self.queries.get(name).copied().unwrap_or_default());
        let failed = if failed == 0 { String::new() } else { format!(", {failed} of them failed") };
        format!(
            "{:<36}  {:<9}  {} of {total} queries{failed}  in {}",
            printable(&self.id),
            self.state,
            succeeded + self.queries.get("failed").copied().unwrap_or_default(),
            printable(&self.collection),
        )
    }
}

fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unspecified",
        JobState::Pending => "pending",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
        JobState::Expired => "expired",
        JobState::Deleting => "deleting",
    }
}

/// The result of one query as scripts see it.
#[derive(Debug, Serialize)]
pub(super) struct ResultDocument {
    position: u64,
    query_id: String,
    #[serde(flatten)]
    result: RankingOrError,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum RankingOrError {
    Ranking {
        hits: Vec<HitDocument>,
        outcome: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        anchor: Option<AnchorDocument>,
        #[serde(skip_serializing_if = "Option::is_none")]
        refined_text: Option<String>,
        questions: QuestionDocument,
    },
    Error {
        error: ErrorDocument,
    },
}

#[derive(Debug, Serialize)]
struct HitDocument {
    rank: usize,
    id: String,
    score: f32,
}

#[derive(Debug, Serialize)]
struct AnchorDocument {
    id: String,
    round: u32,
}

#[derive(Debug, Serialize)]
struct QuestionDocument {
    locate: u32,
    describe: u32,
    aggregate: u32,
}

#[derive(Debug, Serialize)]
struct ErrorDocument {
    code: &'static str,
    reason: String,
    message: String,
}

impl From<FetchJobResultsResponse> for ResultDocument {
    fn from(fetched: FetchJobResultsResponse) -> Self {
        let result = match fetched.result {
            Some(Fetched::Error(error)) => RankingOrError::Error { error: error_document(error) },
            Some(Fetched::Ranking(ranking)) => ranking_document(ranking),
            None => ranking_document(JobRanking::default()),
        };
        Self { position: fetched.position, query_id: fetched.query_id, result }
    }
}

impl ResultDocument {
    /// The result in a line for a person.
    pub(super) fn line(&self) -> String {
        let what = match &self.result {
            RankingOrError::Error { error } => format!("failed: {}", printable(&error.message)),
            RankingOrError::Ranking { hits, outcome, .. } => {
                let best = hits.iter().map(|hit| format!("{} {:.4}", printable(&hit.id), hit.score));
                format!("{outcome}: {}", best.collect::<Vec<_>>().join(", "))
            }
        };
        format!("{}  {what}", printable(&self.query_id))
    }
}

fn error_document(error: ItemError) -> ErrorDocument {
    let code = thicket_telemetry::code_name(tonic::Code::from_i32(error.code));
    ErrorDocument { code, reason: error.reason, message: error.message }
}

fn ranking_document(ranking: JobRanking) -> RankingOrError {
    let outcome = outcome_name(ranking.outcome());
    let questions = ranking.questions.unwrap_or_default();
    RankingOrError::Ranking {
        hits: (1..)
            .zip(ranking.items)
            .map(|(rank, item)| HitDocument { rank, id: item.id, score: item.score })
            .collect(),
        outcome,
        anchor: (!ranking.anchor_id.is_empty())
            .then_some(AnchorDocument { id: ranking.anchor_id, round: ranking.anchor_round }),
        refined_text: Some(ranking.refined_text).filter(|text| !text.is_empty()),
        questions: QuestionDocument {
            locate: questions.locate,
            describe: questions.describe,
            aggregate: questions.aggregate,
        },
    }
}
