//! What is too large for a record: queries, results of parts, the file of all results. Everything of a job is below one
//! folder that nothing else has ever used.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use thicket_blobs::{BlobError, Blobs, Upload};
use thicket_proto::v1::JobQuery;
use thicket_rankings::Row;
use thicket_runtime::Fault;

use super::fault::of_objects;

/// Longest wait for one call to the store.
const LIMIT: Duration = Duration::from_secs(30);
/// Objects deleted at a time.
const PARALLEL_DELETES: usize = 8;

/// The queries of one part, as they are stored.
#[derive(Clone, PartialEq, Message)]
struct StoredQueries {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<JobQuery>,
}

/// Objects of jobs.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    blobs: Blobs,
    /// The folder that they are in, where they are on this machine: one that has gone, such as a mount, must not be made
    /// anew and filled.
    folder: Option<PathBuf>,
}

/// The moment at which a call that begins now has taken too long.
pub(super) fn soon() -> Instant {
    Instant::now() + LIMIT
}

impl Objects {
    pub(crate) fn new(blobs: Blobs, folder: Option<PathBuf>) -> Self {
        Self { blobs, folder }
    }

    async fn is_there(&self) -> Result<(), Fault> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let looked = tokio::time::timeout(LIMIT, tokio::fs::metadata(folder)).await;
        let reason = match looked {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        Err(super::fault::away(format!("the folder of the jobs' objects, {}: {reason}", folder.display())))
    }

    /// Writes where there is nothing of that name; tells whether there was.
    async fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, Fault> {
        self.is_there().await?;
        let stored = self.blobs.put_if_absent(name, bytes, soon()).await.map_err(of_objects)?;
        Ok(!stored)
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>, Fault> {
        self.is_there().await?;
        match self.blobs.get(name, soon()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(BlobError::NotFound { .. }) => Ok(None),
            Err(error) => Err(of_objects(error)),
        }
    }

    /// Stores the queries of a part.
    pub(super) async fn put_queries(
        &self,
        folder: &str,
        part: u32,
        queries: Vec<JobQuery>,
    ) -> Result<(), Fault> {
        let bytes = StoredQueries { queries }.encode_to_vec();
        self.put_new(&queries_name(folder, part), bytes.into()).await.map(drop)
    }

    /// The queries of a part, in order.
    pub(super) async fn queries(&self, folder: &str, part: u32) -> Result<Vec<JobQuery>, Fault> {
        let name = queries_name(folder, part);
        let bytes = self.get(&name).await?.ok_or_else(|| lost(&name))?;
        let stored = StoredQueries::decode(bytes).map_err(|error| damaged(&name, &error))?;
        Ok(stored.queries)
    }

    /// Stores the results of a part where there are none yet, and gives those that are there.
    pub(super) async fn put_results(
        &self,
        folder: &str,
        part: u32,
        rows: Vec<Row>,
    ) -> Result<Vec<Row>, Fault> {
        let name = results_name(folder, part);
        let (rows, bytes) = blocking(move || {
            let bytes = thicket_rankings::write(&rows);
            (rows, bytes)
        })
        .await?;
        let bytes = bytes.map_err(Fault::internal)?;
        let existed = self.put_new(&name, bytes).await?;
        // Another owner of the part was faster. What it wrote is what counts.
        if existed { self.results(folder, part).await?.ok_or_else(|| lost(&name)) } else { Ok(rows) }
    }

    /// The results of a part; `None` where there are none.
    pub(super) async fn results(&self, folder: &str, part: u32) -> Result<Option<Vec<Row>>, Fault> {
        let name = results_name(folder, part);
        let Some(bytes) = self.get(&name).await? else { return Ok(None) };
        let rows = blocking(move || thicket_rankings::read(bytes)).await?;
        rows.map(Some).map_err(|error| damaged(&name, &error))
    }

    /// Begins to write the file of all results, in place of one that is there.
    pub(super) async fn begin_file(&self, folder: &str) -> Result<Upload, Fault> {
        self.is_there().await?;
        self.blobs.upload(&file_name(folder), soon()).await.map_err(of_objects)
    }

    /// The file of all results, in pieces.
    pub(super) async fn file(
        &self,
        folder: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, BlobError>> + Send + Unpin + use<>, Fault> {
        let name = file_name(folder);
        self.is_there().await?;
        match self.blobs.read(&name, LIMIT).await {
            Ok(pieces) => Ok(pieces),
            Err(BlobError::NotFound { .. }) => Err(lost(&name)),
            Err(error) => Err(of_objects(error)),
        }
    }

    /// Deletes everything of a job.
    pub(super) async fn remove(&self, folder: &str) -> Result<(), Fault> {
        self.is_there().await?;
        // A large job has many objects; the store has its time for each page of them.
        let listed: Vec<_> =
            self.blobs.list(&job_folder(folder), soon()).try_collect().await.map_err(of_objects)?;
        let gone = futures::stream::iter(listed)
            .map(|entry| async move { self.blobs.delete(&entry.key, soon()).await })
            .buffer_unordered(PARALLEL_DELETES);
        gone.try_collect::<Vec<()>>().await.map(drop).map_err(of_objects)
    }
}

fn job_folder(folder: &str) -> String {
    format!("jobs/{folder}")
}

fn queries_name(folder: &str, part: u32) -> String {
    format!("jobs/{folder}/queries/{part:05}")
}

fn results_name(folder: &str, part: u32) -> String {
    format!("jobs/{folder}/parts/{part:05}.parquet")
}

fn file_name(folder: &str) -> String {
    format!("jobs/{folder}/results.parquet")
}

fn lost(name: &str) -> Fault {
    Fault::DataLoss { message: format!("{name} is missing in the object store") }
}

fn damaged(name: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::DataLoss { message: format!("{name} is damaged: {error}") }
}

/// Computes on a thread that may take its time.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.map_err(Fault::internal)
}
