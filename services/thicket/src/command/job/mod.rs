//! Batches of queries as jobs of a running cluster.

mod change;
mod document;
mod follow;
mod queries;
mod results;
mod show;
mod submit;

use super::server::ServerArgs;
use crate::Failure;
use crate::client::{self, Jobs};

/// Runs batches of queries as jobs that outlive this command and the coordinator that took them
#[derive(Debug, clap::Args)]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Debug, clap::Subcommand)]
enum JobCommand {
    /// Makes a job of a file of queries and returns at once
    Submit(Box<submit::SubmitArgs>),
    /// Makes a job, waits for its end and prints its results
    Run(Box<submit::RunArgs>),
    /// Lists the jobs
    List(show::ListArgs),
    /// Shows a job
    Show(OneArgs),
    /// Follows a job until nothing happens to it any more; exit status 1 where it is not done then
    Watch(OneArgs),
    /// Stops a job; what is done stays
    Cancel(OneArgs),
    /// Lets a cancelled or expired job go on
    Resume(change::ResumeArgs),
    /// Prints the results of a job, or saves them as a Parquet file
    Results(results::ResultsArgs),
    /// Deletes a job with its queries and results
    Delete(OneArgs),
}

/// One job of the cluster.
#[derive(Debug, clap::Args)]
struct OneArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// What every subcommand takes.
#[derive(Debug, clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl CommonArgs {
    fn jobs(&self) -> Result<Jobs, Failure> {
        client::jobs(&self.server.server, self.server.token())
    }
}

pub(super) async fn run(args: JobArgs) -> Result<(), Failure> {
    match args.command {
        JobCommand::Submit(args) => submit::submit(*args).await,
        JobCommand::Run(args) => submit::run(*args).await,
        JobCommand::List(args) => show::list(args).await,
        JobCommand::Show(args) => show::show(args).await,
        JobCommand::Watch(args) => follow::watch(args).await,
        JobCommand::Cancel(args) => change::cancel(args).await,
        JobCommand::Resume(args) => change::resume(args).await,
        JobCommand::Results(args) => results::run(args).await,
        JobCommand::Delete(args) => change::delete(args).await,
    }
}
