//! The results of a job as a Parquet file, a row a query.
//!
//! | column | |
//! | --- | --- |
//! | `position` | place of the query in the job, from 0 |
//! | `query_id` | its id |
//! | `outcome` | how the interaction ended; null where the query failed |
//! | `anchor_id`, `anchor_image`, `anchor_round` | the confirmed candidate, its image and its round, from 1; null without one |
//! | `refined_text` | the text that the final ranking was made with beside the original; null where unrefined |
//! | `locate`, `describe`, `aggregate` | questions asked, by kind |
//! | `item_ids`, `item_images`, `item_scores` | the ranking, best first: three lists of one length |
//! | `error_code`, `error_reason`, `error_message` | why the query failed; null where it did not |
//!
//! Images are named by the hex BLAKE3 hashes of their bytes, empty where an item has none, so that what names an image can
//! be found and taken out ([`Row::forget`]).
//!
//! The same rows give the same bytes: there is no time, no name of a machine and no version in them.

mod columns;
mod forget;
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
    /// The best first.
    pub items: Vec<Item>,
    /// How the interaction ended, in lower case.
    pub outcome: String,
    /// The confirmed candidate.
    pub anchor: Option<Anchor>,
    /// The text that the ranking was made with beside the original.
    pub refined_text: Option<String>,
    /// Questions asked: locate, describe, aggregate.
    pub questions: [u32; 3],
}

/// An item of a ranking.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// Hash of its image, empty where it has none.
    pub image: String,
    /// Its score.
    pub score: f32,
}

/// The candidate that a Yes has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Its id.
    pub id: String,
    /// Hash of its image.
    pub image: String,
    /// The round of the Yes, from 1.
    pub round: u32,
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
