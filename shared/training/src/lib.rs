//! Training of the two models of a person search, on candle, with the same layers that serve.
//!
//! [`train_embedding`] trains an RDE-style two-tower, [`train_answer`] a Qwen2-VL. Both learn from the built-in sample's
//! training split, watch its validation split and never see its test split; both start from a seed and write a folder
//! in the published format, which the services load like any other.

mod answer;
mod attributes;
mod embedding;
mod error;
mod mining;
mod optimiser;
mod parameters;
mod run;
mod sample;

pub use answer::{AnswerCard, AnswerOptions, train_answer};
pub use embedding::{EmbeddingCard, EmbeddingOptions, train_embedding};
pub use error::TrainingError;
pub use run::{Event, Watch};
