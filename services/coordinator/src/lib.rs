//! The coordinator of Thicket: runs one person search from text to final ranking, and ingests images.
//!
//! A search embeds the text, ranks the gallery, lets the answer model look at the best candidates as long as an answer
//! can still change the result (`thicket-thi` decides), rewrites the query from what the model sees on the confirmed
//! candidate and ranks again with one search. Every step is an event on the caller's stream; a caller that goes away
//! stops the search at once.
//!
//! It holds nothing but jobs: every call is served from the embedding, gallery and answer roles, through their public
//! contract. A job is a batch of queries that outlives its caller and its coordinator: its record and the leases of its
//! parts are in etcd or in a file (`thicket-jobstore`), its queries and results in an object store (`thicket-blobs`).
//!
//! ```no_run
//! # use thicket_coordinator::{App, Config, Peers};
//! # use thicket_runtime::{Failure, Stop};
//! # async fn example() -> Result<(), Failure> {
//! let app = App::build(Config::in_process(Peers::default())).await?;
//! let (stop_handle, stop) = Stop::by_hand();
//! println!("serving on {}", app.grpc_addr());
//! app.run(stop).await
//! # }
//! ```

mod admission;
mod app;
mod calling;
mod clients;
mod config;
mod driven;
mod ingest;
mod input;
mod job_config;
mod jobs;
mod placing;
mod rounds;
mod search;
mod service;
mod spans;

pub use app::App;
pub use calling::{Calling, CallingArgs, DEFAULT_ASK_AHEAD, MOST_ASK_AHEAD, SilentAfter};
pub use job_config::{DEFAULT_JOB_QUERIES, JobArgs, JobConfig, JobObjects};

pub use config::{
    Args, Config, ConfigError, Coordination, CoordinationArgs, DEFAULT_MAX_CALLS, InteractionArgs, PeerArgs,
    Peers,
};
