use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;
use thicket_proto::v1::{FetchJobFileRequest, FetchJobResultsRequest};
use tonic::Request;

use super::CommonArgs;
use super::document::ResultDocument;
use super::submit::longest;
use crate::client::{self, Jobs, printable};
use crate::{Failure, console};

#[derive(Debug, clap::Args)]
pub(super) struct ResultsArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: String,
    /// Save the Parquet file of all results instead of printing them
    #[arg(long, value_name = "FILE", conflicts_with = "partial")]
    out: Option<PathBuf>,
    /// Print what there is of a job that is not done
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Results as scripts see them.
#[derive(Debug, Serialize)]
struct Document {
    id: String,
    results: Vec<ResultDocument>,
}

/// A saved file as scripts see it.
#[derive(Debug, Serialize)]
struct Saved {
    id: String,
    file: String,
    bytes: u64,
}

pub(super) async fn run(args: ResultsArgs) -> Result<(), Failure> {
    let mut jobs = args.common.jobs()?;
    if let Some(file) = &args.out {
        let bytes = save(&mut jobs, &args.id, file).await?;
        let saved = Saved { id: args.id, file: file.display().to_string(), bytes };
        return match args.common.json {
            true => console::print_json(&saved),
            false => console::print(&format!("{bytes} bytes in {}", printable(&saved.file))),
        };
    }
    let results = fetch(&mut jobs, &args.id, args.partial).await?;
    match args.common.json {
        true => console::print_json(&Document { id: args.id, results }),
        false => print(&results),
    }
}

/// The results of a job, in the order of its queries.
pub(super) async fn fetch(jobs: &mut Jobs, id: &str, partial: bool) -> Result<Vec<ResultDocument>, Failure> {
    let mut request = Request::new(FetchJobResultsRequest { id: id.to_owned(), partial });
    request.set_timeout(longest());
    let fetched = jobs.fetch_job_results(request).await;
    let mut fetched = fetched.map_err(|status| client::failure(&status))?.into_inner();
    let mut results = Vec::new();
    while let Some(result) = fetched.message().await.map_err(|status| client::failure(&status))? {
        results.push(result.into());
    }
    Ok(results)
}

/// Prints results for a person.
pub(super) fn print(results: &[ResultDocument]) -> Result<(), Failure> {
    results.iter().try_for_each(|result| console::print(&result.line()))
}

/// Saves the file, whole or not at all; returns its bytes.
async fn save(jobs: &mut Jobs, id: &str, file: &Path) -> Result<u64, Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("{} cannot be written: {error}", file.display()));
    let mut request = Request::new(FetchJobFileRequest { id: id.to_owned() });
    request.set_timeout(longest());
    let pieces = jobs.fetch_job_file(request).await;
    let mut pieces = pieces.map_err(|status| client::failure(&status))?.into_inner();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut partial = NamedTempFile::new_in(folder).map_err(failed)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await.map_err(|status| client::failure(&status))? {
        bytes += piece.data.len() as u64;
        partial.write_all(&piece.data).map_err(failed)?;
    }
    partial.persist(file).map_err(|error| failed(error.error))?;
    Ok(bytes)
}
