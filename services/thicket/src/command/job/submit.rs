use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use thicket_proto::v1::{CreateJobRequest, Job, JobQuery, JobSpec};
use thicket_runtime::{MAX_DEADLINE, unix_ms};
use tonic::Request;

use super::document::{JobDocument, ResultDocument};
use super::{CommonArgs, follow, queries, results};
use crate::client::{self, DEFAULT_COLLECTION, Jobs};
use crate::command::filter::FilterArgs;
use crate::command::interaction::InteractionArgs;
use crate::{Failure, console};

/// Most queries of a message, and most bytes of their texts together.
const MESSAGE_QUERIES: usize = 1_000;
const MESSAGE_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    job: NewJobArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    job: NewJobArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// A job to make.
#[derive(Debug, clap::Args)]
struct NewJobArgs {
    /// File of queries, a line each, `-` for stdin: {"id": "q1", "text": "a red coat"} with, where wanted, "adapter",
    /// "cameras", "from", "until", "tags" and "any_tags"; or a plain description, whose id is then its line's number
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Id of the job, which nothing else has had [default: a fresh one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    id: String,
    /// Collection to search
    #[arg(long, value_name = "C", default_value = DEFAULT_COLLECTION)]
    collection: String,
    /// Results wanted of each query
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    #[command(flatten)]
    interaction: InteractionArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Queries of a part, which is what another coordinator takes over [default: the server's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    part_size: Option<u32>,
    /// When the job is given up, as in 2026-03-01T08:30:00+01:00 [default: never]
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<i64>,
}

/// The end of a job with its results, as scripts see it.
#[derive(Debug, Serialize)]
struct RunDocument {
    job: JobDocument,
    results: Vec<ResultDocument>,
}

pub(super) fn time(text: &str) -> Result<i64, String> {
    unix_ms(text).ok_or_else(|| "write a time as in 2026-03-01T08:30:00+01:00".to_owned())
}

pub(super) async fn submit(args: SubmitArgs) -> Result<(), Failure> {
    let job = create(&mut args.common.jobs()?, args.job).await?;
    let document = JobDocument::from(&job);
    if args.common.json {
        return console::print_json(&document);
    }
    console::print(&document.line())
}

pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let mut jobs = args.common.jobs()?;
    let job = create(&mut jobs, args.job).await?;
    let id = job.spec.unwrap_or_default().id;
    console::note(&format!("job {id}"));
    let job = follow::to_the_end(&mut jobs, &id).await?;
    follow::must_be_done(&id, job.as_ref())?;
    let job = JobDocument::from(&job.unwrap_or_default());
    let results = results::fetch(&mut jobs, &id, false).await?;
    if args.common.json {
        return console::print_json(&RunDocument { job, results });
    }
    results::print(&results)
}

async fn create(jobs: &mut Jobs, args: NewJobArgs) -> Result<Job, Failure> {
    let file = args.file.clone();
    let queries = crate::command::blocking(move || queries::read(&file)).await?;
    let spec = JobSpec {
        id: args.id,
        collection: args.collection,
        top: args.top,
        settings: Some(args.interaction.settings()),
        part_size: args.part_size.unwrap_or_default(),
        deadline_unix_ms: args.deadline,
        adapter: args.interaction.adapter,
        filter: args.filter.filter(),
    };
    let mut request = Request::new(tokio_stream::iter(messages(spec, queries)));
    request.set_timeout(longest());
    let made = jobs.create_job(request).await.map_err(|status| client::failure(&status))?;
    made.into_inner().job.ok_or_else(|| Failure::failed("the server made a job and did not describe it"))
}

/// As long as a server lets a call take.
pub(super) fn longest() -> Duration {
    MAX_DEADLINE
}

/// The job in messages of bounded size.
fn messages(spec: JobSpec, queries: Vec<JobQuery>) -> Vec<CreateJobRequest> {
    let mut messages = vec![CreateJobRequest { spec: Some(spec), queries: Vec::new() }];
    let mut bytes = 0;
    for query in queries {
        bytes += query.text.len() + query.id.len();
        if bytes > MESSAGE_BYTES || messages.last().is_none_or(|last| last.queries.len() >= MESSAGE_QUERIES) {
            messages.push(CreateJobRequest::default());
            bytes = query.text.len() + query.id.len();
        }
        if let Some(last) = messages.last_mut() {
            last.queries.push(query);
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_is_in_a_message_and_the_first_has_the_job() {
        let query = |number: usize| JobQuery {
            id: number.to_string(),
            text: "x".repeat(if number == 7 { 2 * MESSAGE_BYTES } else { 2_000 }),
            ..JobQuery::default()
        };
        let sent = messages(JobSpec::default(), (0..2_500).map(query).collect());
        assert!(sent[0].spec.is_some() && sent[1..].iter().all(|message| message.spec.is_none()));
        let ids: Vec<_> =
            sent.iter().flat_map(|message| &message.queries).map(|query| query.id.clone()).collect();
        assert_eq!(ids, (0..2_500).map(|number| number.to_string()).collect::<Vec<_>>());
        assert!(sent.iter().all(|message| message.queries.len() <= MESSAGE_QUERIES));
    }
}
