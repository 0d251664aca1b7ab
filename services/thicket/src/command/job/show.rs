use serde::Serialize;
use thicket_proto::v1::{GetJobRequest, ListJobsRequest};

use super::document::JobDocument;
use super::{CommonArgs, OneArgs};
use crate::client;
use crate::{Failure, console};

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// All jobs as scripts see them.
#[derive(Debug, Serialize)]
struct Document {
    jobs: Vec<JobDocument>,
}

pub(super) async fn list(args: ListArgs) -> Result<(), Failure> {
    let listed = args.common.jobs()?.list_jobs(ListJobsRequest {}).await;
    let listed = listed.map_err(|status| client::failure(&status))?.into_inner();
    let jobs: Vec<JobDocument> = listed.jobs.iter().map(Into::into).collect();
    if args.common.json {
        return console::print_json(&Document { jobs });
    }
    if jobs.is_empty() {
        return console::print("there is no job");
    }
    console::print(&jobs.iter().map(JobDocument::line).collect::<Vec<_>>().join("\n"))
}

pub(super) async fn show(args: OneArgs) -> Result<(), Failure> {
    let found = args.common.jobs()?.get_job(GetJobRequest { id: args.id }).await;
    let found = found.map_err(|status| client::failure(&status))?.into_inner();
    print(&args.common, &JobDocument::from(&found.job.unwrap_or_default()))
}

/// Prints one job.
pub(super) fn print(common: &CommonArgs, document: &JobDocument) -> Result<(), Failure> {
    match common.json {
        true => console::print_json(document),
        false => console::print(&document.line()),
    }
}
