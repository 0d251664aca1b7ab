//! The CLIP two-tower encoder of person search, as IRRA and RDE modified it: images and texts to vectors of one space.
//!
//! [`TwoTower`] is the network alone, differentiable, for training and inference; [`ClipTokenizer`] is its text side's
//! pre-processing; [`ClipEmbedder`] puts both behind [`thicket_engine::Embedder`] for a checkpoint folder: a published
//! RDE or IRRA run folder (`best.pth`, `configs.yaml`), one written by Thicket's trainer (`model.safetensors`,
//! `configs.yaml`, optionally `bpe_simple_vocab.txt`), or a CLIP model as Hugging Face's transformers saves it
//! (`model.safetensors`, `config.json`, `preprocessor_config.json` and a tokeniser).
//!
//! Two embeddings come out of each tower. The global one (BGE) is the image's class token or the text's end token. The
//! token-selection one (TSE, of "Noisy-Correspondence Learning for Text-to-Image Person Re-identification", CVPR 2024)
//! is the channel-wise maximum over the local tokens that the last block attends to most.

mod block;
mod config;
mod embedder;
mod encoder;
mod error;
mod folder;
mod html;
mod hugging_face;
mod inputs;
mod names;
mod options;
mod preprocessing;
mod repair;
mod selection;
mod text;
mod tokenizer;
mod tower;
mod vision;

pub use config::{Activation, Config, EndMark, TowerConfig, TseConfig};
pub use embedder::{ClipEmbedder, LoadOptions, stored_values};
pub use error::ClipError;
pub use options::{OPTIONS_FILE, RunOptions};
pub use tokenizer::{ClipTokenizer, VOCABULARY_FILE};
pub use tower::{ImageFeatures, TextFeatures, TwoTower};
