//! Test-time human-centred interaction (THI) as pure code: no I/O, no async, no clock.
//!
//! THI comes from the ICL paper (CVPR 2025): show the best gallery images to a multimodal model, ask whether each
//! one is the described person, describe the confirmed image (the *anchor*), merge that description into the query
//! and rank again. This crate decides; it never calls a model. The coordinator, the offline commands and the tests
//! all use it:
//!
//! - [`Settings`]: how the interaction runs, validated once.
//! - [`Interaction`]: one query's state machine. It asks only what can change the result.
//! - [`plain`]: the same method as the paper's round-by-round loop, the reference for the state machine.
//! - [`decide_all`]: the decisions for a whole similarity matrix, given every possible answer.
//! - [`fusion`]: re-ranking (Eq. 6), as a matrix and as one search with a mixed query.
//! - [`ranking`]: the order of results everywhere in Thicket.
//! - [`prompts`]: what the model is asked, as templates an operator can replace, and how its text is read.
//! - [`schedule`]: the two-lane queue in which questions wait for a model.

mod decide;
pub mod fusion;
mod interaction;
pub mod plain;
pub mod prompts;
pub mod ranking;
pub mod schedule;
mod settings;

pub use decide::{DecideError, Decisions, decide_all};
pub use interaction::{
    Answer, Candidate, Class, Interaction, InteractionError, Outcome, Question, Refinement, Step,
};
pub use settings::{
    DEFAULT_LAMBDA, DEFAULT_ROUNDS, DEFAULT_XI, DEFAULT_YES_THRESHOLD, MAX_ROUNDS, Settings, SettingsError,
};
