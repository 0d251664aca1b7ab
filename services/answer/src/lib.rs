//! The answer role: questions to a multimodal language model about pedestrian images.
//!
//! One thread owns the model and works step by step: in each, texts get a token and new questions a part of their prompt,
//! so that none waits for another to end. A yes/no question costs one forward pass; a description is made once for each
//! image and kept, with a data folder beyond the end of the process. The program and the all-in-one process run the same [`App`]:
//!
//! ```no_run
//! # use thicket_answer::{App, Config};
//! # use thicket_runtime::{Failure, Stop};
//! # async fn role(stop: Stop) -> Result<(), Failure> {
//! let app = App::build(Config::in_process("models/answer")).await?;
//! let address = app.grpc_addr();
//! app.run(stop).await
//! # }
//! ```

mod adapters;
mod app;
mod archive;
mod config;
mod engine;
mod memory;
mod model;
mod rpc;
mod served;
mod store;

pub use adapters::MAX_ADAPTER_NAME_BYTES;
pub use app::App;
pub use config::{
    AnswerArgs, Args, BudgetArgs, Config, DEFAULT_ADAPTER_LIMIT, DEFAULT_ANSWER_CACHE_BYTES,
    DEFAULT_DESCRIPTIONS, DEFAULT_MAX_BATCH, DEFAULT_MAX_OUTPUT_TOKENS, LoadingArgs, ModelSource,
    PROMPTS_FILE, ServedArgs,
};
pub use rpc::{MAX_ANSWERS, MAX_FORGOTTEN, MAX_REWRITES, MAX_TEMPERATURE, MIN_MASS};
pub use thicket_openai::Server;
