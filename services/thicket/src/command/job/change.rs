use serde::Serialize;
use thicket_proto::v1::{CancelJobRequest, DeleteJobRequest, ResumeJobRequest};

use super::document::JobDocument;
use super::show::print;
use super::submit::time;
use super::{CommonArgs, OneArgs};
use crate::client::{self, printable};
use crate::{Failure, console};

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: String,
    /// When it is given up, as in 2026-03-01T08:30:00+01:00 [default: as before; never, where that has passed]
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<i64>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Serialize)]
struct Deleted {
    id: String,
    deleted: bool,
}

pub(super) async fn cancel(args: OneArgs) -> Result<(), Failure> {
    let changed = args.common.jobs()?.cancel_job(CancelJobRequest { id: args.id }).await;
    let changed = changed.map_err(|status| client::failure(&status))?.into_inner();
    print(&args.common, &JobDocument::from(&changed.job.unwrap_or_default()))
}

pub(super) async fn resume(args: ResumeArgs) -> Result<(), Failure> {
    let request = ResumeJobRequest { id: args.id, deadline_unix_ms: args.deadline };
    let changed = args.common.jobs()?.resume_job(request).await;
    let changed = changed.map_err(|status| client::failure(&status))?.into_inner();
    print(&args.common, &JobDocument::from(&changed.job.unwrap_or_default()))
}

pub(super) async fn delete(args: OneArgs) -> Result<(), Failure> {
    let deleted = args.common.jobs()?.delete_job(DeleteJobRequest { id: args.id.clone() }).await;
    deleted.map_err(|status| client::failure(&status))?;
    match args.common.json {
        true => console::print_json(&Deleted { id: args.id, deleted: true }),
        false => console::print(&format!("job {} and its results are deleted", printable(&args.id))),
    }
}
