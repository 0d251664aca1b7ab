//! The models that Thicket supports, as data: where they are published, how large they are, which of their files are
//! read, and on which GPU they fit. No I/O, no dependencies.

mod files;
mod memory;
mod models;

pub use files::{NoWeights, needed};
pub use memory::{ACTIVATION_RESERVE, CACHE_RESERVE, DRIVER_RESERVE, GPUS, Gpu, Need};
pub use models::{MODELS, Model, Role, find};
