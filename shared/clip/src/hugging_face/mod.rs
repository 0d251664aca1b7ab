//! A CLIP model in the folder layout of Hugging Face's transformers.
//!
//! The network is that of a run folder without token selection. What differs is told here: sizes come from
//! `config.json` and are held against the weights, tensors have other names and shapes, texts go through the folder's
//! own tokenizer and images through the steps of its `preprocessor_config.json`.

mod config;
mod json;
mod processor;
mod tokenizer;
mod weights;

pub(crate) use config::CONFIG_FILE;
pub(crate) use config::read as read_config;
pub(crate) use processor::read as read_preprocessing;
pub(crate) use tokenizer::{HfTokenizer, read as read_tokenizer};
pub(crate) use weights::Weights;
