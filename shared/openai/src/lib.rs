//! Answers from a multimodal model that another program serves with the OpenAI chat interface, as vLLM and SGLang do.
//!
//! [`OpenAiAnswerer`] is a [`thicket_engine::Answerer`] like the one that computes itself: questions are handed to the server
//! as they come, up to a limit, and batching them is the server's business. p(Yes) is read from the log-probabilities of the
//! first answer token; of a server that gives none, that token itself decides.

mod answerer;
mod client;
mod settings;
mod verdict;
mod wire;

pub use answerer::OpenAiAnswerer;
pub use client::ServerError;
pub use settings::{DEFAULT_CONTEXT_LENGTH, Server, SettingError};
