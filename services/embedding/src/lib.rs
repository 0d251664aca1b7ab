//! The embedding role: texts and pedestrian images to unit vectors of one space.
//!
//! Texts are tokenised, and images decoded and resized, on threads of their own. One thread a device owns a copy of the
//! model; what is prepared queues for it and is batched by tokens. The program and the all-in-one process run the same
//! [`App`]:
//!
//! ```no_run
//! # use thicket_embedding::{App, Config};
//! # use thicket_runtime::{Failure, Stop};
//! # async fn role(stop: Stop) -> Result<(), Failure> {
//! let app = App::build(Config::in_process("models/embedding")).await?;
//! let address = app.grpc_addr();
//! app.run(stop).await
//! # }
//! ```

mod app;
mod config;
mod engine;
pub mod packing;
mod rpc;

pub use app::App;
pub use config::{Args, Config, DEFAULT_BATCH_TOKENS, EmbeddingArgs};
pub use rpc::{MAX_IMAGES, MAX_TEXTS};
