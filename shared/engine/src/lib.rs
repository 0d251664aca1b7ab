//! The roles a model or an index plays in Thicket, as traits that know no framework.
//!
//! Services depend on this crate; the crates that wrap candle or FAISS implement it. An implementation is
//! synchronous and owned by one thread: the service that owns the thread does the queueing and the batching.

mod answerer;
mod embedder;
mod error;
mod index;
mod question;
pub mod schedule;

pub use answerer::{AdapterInfo, Answerer, AnswererInfo, Finish, Generation, Prompt, Sampling, Verdict};
pub use embedder::{Embedder, EmbedderInfo, PreparedImage, PreparedText, Preprocessor, Similarity};
pub use error::EngineError;
pub use index::{Hit, VectorIndex};
pub use question::{Answer, Ask, Kind, Load, Progress, Question, Ticket};
