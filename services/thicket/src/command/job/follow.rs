use std::time::{Duration, Instant};

use thicket_proto::v1::{Job, JobState, WatchJobRequest};
use tonic::{Code, Request, Status};

use super::OneArgs;
use super::document::JobDocument;
use super::submit::longest;
use crate::client::{self, Jobs, printable};
use crate::{Failure, console};

/// How long no coordinator may be there before this gives up; the job goes on without it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts to find one.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn watch(args: OneArgs) -> Result<(), Failure> {
    let job = to_the_end(&mut args.common.jobs()?, &args.id).await?;
    if let Some(job) = &job {
        let document = JobDocument::from(job);
        if args.common.json {
            console::print_json(&document)?;
        } else {
            console::print(&document.line())?;
        }
    }
    must_be_done(&args.id, job.as_ref())
}

/// Follows a job until nothing happens to it any more, with a bar on stderr; `None` where it is deleted.
///
/// # Errors
/// [`Failure`] where the server refuses, or stays away.
pub(super) async fn to_the_end(jobs: &mut Jobs, id: &str) -> Result<Option<Job>, Failure> {
    let bar = console::progress("searching", 0);
    let mut away: Option<Instant> = None;
    let end = loop {
        match until_broken(jobs, id, &bar, &mut away).await {
            Ok(job) => break Ok(job),
            Err(status) if !is_passing(&status) => break Err(client::failure(&status)),
            Err(status) => {
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    let failure = client::failure(&status);
                    break Err(Failure::failed(format!("{failure}; the job goes on by itself")));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    bar.finish_and_clear();
    end
}

/// Whether another attempt may do better.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
    )
}

async fn until_broken(
    jobs: &mut Jobs,
    id: &str,
    bar: &indicatif::ProgressBar,
    away: &mut Option<Instant>,
) -> Result<Option<Job>, Status> {
    let mut request = Request::new(WatchJobRequest { id: id.to_owned() });
    request.set_timeout(longest());
    let mut changes = jobs.watch_job(request).await?.into_inner();
    let mut last: Option<Job> = None;
    while let Some(change) = changes.message().await? {
        *away = None;
        let Some(job) = change.job else { continue };
        let queries = job.queries.unwrap_or_default();
        bar.set_length(queries.total);
        bar.set_position(queries.succeeded + queries.failed);
        last = Some(job);
    }
    Ok(last.filter(|job| job.state() != JobState::Deleting))
}

/// Fails where a job ended otherwise than by being done.
pub(super) fn must_be_done(id: &str, job: Option<&Job>) -> Result<(), Failure> {
    let id = printable(id);
    match job {
        None => Err(Failure::failed(format!("job {id} was deleted"))),
        Some(job) if job.state() == JobState::Done => Ok(()),
        Some(job) => Err(Failure::failed(format!("job {id} is {}", JobDocument::from(job).state))),
    }
}
