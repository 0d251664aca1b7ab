//! One file a subcommand: its arguments, what it does, what it prints.

mod eval;
mod rerank;
mod schedule;
mod synth;

use crate::Failure;

/// Seed of the built-in sample: the benchmark that the sample models were trained on and that `demo` measures.
pub(crate) const SAMPLE_SEED: u64 = 1;

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Synth(synth::SynthArgs),
    Eval(eval::EvalArgs),
    Rerank(rerank::RerankArgs),
    Schedule(schedule::ScheduleArgs),
}

impl Command {
    /// Does what was asked.
    ///
    /// # Errors
    /// [`Failure`] for bad input and for work that failed.
    ///
    /// # Cancel safety
    /// Dropping the future removes what is temporary; what was written whole stays.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Synth(args) => blocking(|| synth::run(args)).await,
            Self::Eval(args) => blocking(|| eval::run(args)).await,
            Self::Rerank(args) => blocking(|| rerank::run(args)).await,
            Self::Schedule(args) => blocking(|| schedule::run(args)).await,
        }
    }

    /// True where the command serves until a signal and drains by itself.
    pub(crate) fn drains(&self) -> bool {
        false
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
