//! The results of a job as a Parquet file, a row a query.
//!
//! | column | |
//! | --- | --- |
//! | `position` | place of the query in the job, from 0 |
//! | `query_id` | its id |
//! | `outcome` | how the interaction ended; null where the query failed |
//! | `anchor_id`, `anchor_round` | the confirmed candidate and its round, from 1; null without one |
//! | `refined_text` | the text that the final ranking was made with beside the original; null where unrefined |
//! | `locate`, `describe`, `aggregate` | questions asked, by kind |
//! | `item_ids`, `item_scores` | the ranking, best first: two lists of one length |
//! | `error_code`, `error_reason`, `error_message` | why the query failed; null where it did not |
//!
//! The same rows give the same bytes: there is no time, no name of a machine and no version in them.

mod columns;
mod read;
mod write;

pub use read::read;
pub use write::{FileWriter, write};

/// The result of one query.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Place of the query in the job, from 0.
    pub position: u64,
    /// Its id.
    pub query_id: String,
    /// What was found, or why nothing was looked for.
    pub result: Result<Ranking, QueryError>,
}

/// The end of one search.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Ids and scores, best first.
    pub items: Vec<(String, f32)>,
    /// How the interaction ended, in lower case.
    pub outcome: String,
    /// The confirmed candidate and its round.
    pub anchor: Option<(String, u32)>,
    /// The text that the ranking was made with beside the original.
    pub refined_text: Option<String>,
    /// Questions asked: locate, describe, aggregate.
    pub questions: [u32; 3],
}

/// Why a query has no ranking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// gRPC status code by its name, as in INVALID_ARGUMENT.
    pub code: String,
    /// Upper-case reason, as in TEXT_EMPTY.
    pub reason: String,
    /// One line for a person.
    pub message: String,
}

/// Why bytes are no results, or results cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is no such Parquet file.
    #[error("not a Parquet file of results: {reason}")]
    Form {
        /// Why not.
        reason: String,
    },
    /// Rows cannot be encoded.
    #[error("results cannot be written: {reason}")]
    Write {
        /// Why not.
        reason: String,
    },
}
