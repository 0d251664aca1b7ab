//! One file a subcommand: its arguments, what it does, what it prints.

mod adapters;
mod ask;
mod capacity;
mod collections;
mod delete;
mod demo;
mod embed;
mod engine;
mod eval;
mod filter;
mod ingest;
mod interaction;
mod job;
mod live;
mod models;
mod rerank;
mod schedule;
mod search;
mod server;
mod synth;
mod train;
mod up;

use std::sync::Arc;

use crate::Failure;
use crate::scratch::Scratch;

/// Seed of the built-in sample: the benchmark that the sample models were trained on and that `demo` measures.
pub(crate) const SAMPLE_SEED: u64 = 1;

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Demo(demo::DemoArgs),
    Up(Box<up::UpArgs>),
    Ingest(ingest::IngestArgs),
    Search(Box<search::SearchArgs>),
    Collections(collections::CollectionsArgs),
    Delete(delete::DeleteArgs),
    Job(job::JobArgs),
    Adapters(adapters::AdaptersArgs),
    Synth(synth::SynthArgs),
    Train(train::TrainArgs),
    Embed(embed::EmbedArgs),
    Ask(ask::AskArgs),
    Eval(eval::EvalArgs),
    Rerank(rerank::RerankArgs),
    Schedule(schedule::ScheduleArgs),
    Models(models::ModelsArgs),
    Capacity(Box<capacity::CapacityArgs>),
}

impl Command {
    /// Does what was asked. Temporary files go to `scratch`.
    ///
    /// # Errors
    /// [`Failure`] for bad input and for work that failed.
    ///
    /// # Cancel safety
    /// What was written whole stays; what is temporary goes with `scratch`.
    pub(crate) async fn run(self, scratch: Arc<Scratch>) -> Result<(), Failure> {
        match self {
            Self::Demo(args) => demo::run(args, scratch).await,
            Self::Up(args) => up::run(*args).await,
            Self::Ingest(args) => ingest::run(args).await,
            Self::Search(args) => search::run(*args).await,
            Self::Collections(args) => collections::run(args).await,
            Self::Delete(args) => delete::run(args).await,
            Self::Job(args) => job::run(args).await,
            Self::Adapters(args) => adapters::run(args).await,
            Self::Synth(args) => blocking(|| synth::run(args)).await,
            Self::Train(args) => blocking(|| train::run(args)).await,
            Self::Embed(args) => blocking(|| embed::run(args)).await,
            Self::Ask(args) => blocking(|| ask::run(args)).await,
            Self::Eval(args) => blocking(|| eval::run(args)).await,
            Self::Rerank(args) => blocking(|| rerank::run(args)).await,
            Self::Schedule(args) => blocking(|| schedule::run(args)).await,
            Self::Models(args) => blocking(|| models::run(args)).await,
            Self::Capacity(args) => blocking(|| capacity::run(*args)).await,
        }
    }

    /// True where the command serves until a signal and drains by itself.
    pub(crate) fn drains(&self) -> bool {
        matches!(self, Self::Up(_))
    }
}

/// Runs work that computes rather than waits on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Failure::failed(format!("the work stopped early: {error}"))),
    }
}
