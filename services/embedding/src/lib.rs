//! The embedding role: texts and pedestrian images to unit vectors of one space.
//!
//! One thread owns the model; calls queue for it and are batched. The program and the all-in-one process run the same
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
mod rpc;

pub use app::App;
pub use config::{Args, Config, DEFAULT_MAX_BATCH, EmbeddingArgs};
pub use rpc::{MAX_IMAGES, MAX_TEXTS};
