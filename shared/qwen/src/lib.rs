//! Qwen2-VL and Qwen2.5-VL: a vision tower, a patch merger and a language model with multimodal rotary positions, read
//! from folders in the published format. The same layers serve training and inference.

mod adapter;
mod answerer;
mod cache;
mod choosing;
mod config;
mod engine;
mod features;
mod footprint;
mod language;
mod linear;
mod model;
mod processor;
mod prompt;
mod readout;
mod rotary;
mod sequence;
mod vision;

pub use adapter::{AdapterError, check_adapter};
pub use answerer::{LoadOptions, QwenAnswerer};
pub use cache::{KvCache, KvPrefix};
pub use config::{Config, ConfigError, RopeScaling, TokenIds, VisionConfig, VisionFamily};
pub use engine::Budgets;
pub use footprint::weight_bytes;
pub use language::{LanguageModel, Segment};
pub use model::{LoadError, QwenModel};
pub use processor::{ImagePatches, PixelBounds, Processor, ProcessorConfig, batch_patches};
pub use prompt::{EncodedPrompt, Position, PromptEncoder, PromptError, next_position, position_ids};
pub use thicket_kernels::{Mask, Quantization};
pub use vision::VisionTower;
