//! What is too large for a record: queries, results of parts, the file of all results. Everything of a job is below one
//! folder that nothing else has ever used.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::stream::{Stream, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use prost::Message;
use thicket_blobs::{BlobError, Blobs, Entry, Upload};
use thicket_jobs::JobId;
use thicket_proto::v1::JobQuery;
use thicket_rankings::{FileWriter, Row};
use thicket_runtime::Fault;

use super::fault::of_objects;
use super::forgotten::Forgotten;

/// Longest wait for one call to the store.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a list of everything.
const LISTING: Duration = Duration::from_secs(300);
/// Objects deleted at a time.
const PARALLEL_DELETES: usize = 8;

/// What all jobs' folders are below.
const JOBS: &str = "jobs";
/// What the notes of forgotten images are below.
const FORGOTTEN: &str = "forgotten";

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
    /// Notes of forgotten images by their names. What a name stands for never changes.
    notes: Arc<Mutex<HashMap<String, Arc<Forgotten>>>>,
}

/// The results that a job has.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// Parts with results, in order.
    pub(super) parts: Vec<u32>,
    /// All results are in one file, too.
    pub(super) has_file: bool,
}

/// The moment at which a call that begins now has taken too long.
pub(super) fn soon() -> Instant {
    Instant::now() + LIMIT
}

impl Objects {
    pub(crate) fn new(blobs: Blobs, folder: Option<PathBuf>) -> Self {
        Self { blobs, folder, notes: Arc::default() }
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

    async fn listed(&self, below: &str) -> Result<Vec<Entry>, Fault> {
        self.is_there().await?;
        self.blobs.list(below, Instant::now() + LISTING).try_collect().await.map_err(of_objects)
    }

    /// Begins the folder of a job with a word of whose it is, so that what a crash leaves of it can be told from the rest.
    pub(super) async fn begin(&self, folder: &str, job: &JobId) -> Result<(), Fault> {
        self.put_new(&owner_name(folder), job.to_string().into()).await.map(drop)
    }

    /// The job that a folder was begun for; `None` where nothing says it.
    pub(super) async fn owner(&self, folder: &str) -> Result<Option<JobId>, Fault> {
        let Some(bytes) = self.get(&owner_name(folder)).await? else { return Ok(None) };
        Ok(std::str::from_utf8(&bytes).ok().and_then(|id| JobId::parse(id).ok()))
    }

    /// Folders in which nothing was written for so long.
    pub(super) async fn untouched(&self, age: Duration) -> Result<Vec<String>, Fault> {
        let mut touched: BTreeMap<String, SystemTime> = BTreeMap::new();
        for entry in self.listed(JOBS).await? {
            if let Some((folder, _)) = in_folder(&entry.key) {
                let last = touched.entry(folder.to_owned()).or_insert(entry.modified);
                *last = entry.modified.max(*last);
            }
        }
        let is_old =
            |last: &SystemTime| SystemTime::now().duration_since(*last).is_ok_and(|elapsed| elapsed >= age);
        Ok(touched.into_iter().filter(|(_, last)| is_old(last)).map(|(folder, _)| folder).collect())
    }

    /// The results of every job, by folder.
    pub(super) async fn all_results(&self) -> Result<BTreeMap<String, Results>, Fault> {
        let mut all: BTreeMap<String, Results> = BTreeMap::new();
        for entry in self.listed(JOBS).await? {
            let Some((folder, rest)) = in_folder(&entry.key) else { continue };
            let results = all.entry(folder.to_owned()).or_default();
            results.has_file |= rest == FILE;
            let part = rest.strip_prefix("parts/").and_then(|part| part.strip_suffix(".parquet"));
            results.parts.extend(part.and_then(|part| part.parse::<u32>().ok()));
        }
        all.values_mut().for_each(|results| results.parts.sort_unstable());
        Ok(all)
    }

    /// Notes that results must not name some images any more, whoever writes them.
    pub(super) async fn note(&self, images: &Forgotten) -> Result<(), Fault> {
        let bytes = images.encode();
        let name = format!("{FORGOTTEN}/{}", blake3::hash(&bytes).to_hex());
        self.is_there().await?;
        self.blobs.put(&name, bytes.into(), soon()).await.map_err(of_objects)
    }

    /// Everything that was noted so. Whoever writes results without it asks afterwards whether it [is still](Self::is_still)
    /// everything, and writes them again where it is not.
    pub(super) async fn forgotten(&self) -> Result<Forgotten, Fault> {
        let listed = self.listed(FORGOTTEN).await?;
        let mut all = Forgotten::default();
        let mut known = HashMap::new();
        for Entry { key, .. } in listed {
            let at_hand = self.notes.lock().get(&key).cloned();
            let note = match at_hand {
                Some(note) => note,
                None => {
                    // Swept since it was listed.
                    let Some(bytes) = self.get(&key).await? else { continue };
                    let note = Forgotten::decode(&bytes).ok_or_else(|| damaged(&key, &"it is cut short"))?;
                    Arc::new(note)
                }
            };
            all.extend(&note);
            known.insert(key, note);
        }
        *self.notes.lock() = known;
        Ok(all)
    }

    /// Deletes the notes that are so old: whoever found anything before them has written it.
    pub(super) async fn sweep_notes(&self, age: Duration) -> Result<(), Fault> {
        for Entry { key, modified, .. } in self.listed(FORGOTTEN).await? {
            if SystemTime::now().duration_since(modified).is_ok_and(|elapsed| elapsed >= age) {
                self.blobs.delete(&key, soon()).await.map_err(of_objects)?;
            }
        }
        self.blobs.remove_unfinished(age).await.map(drop).map_err(of_objects)
    }

    /// Whether nothing else was forgotten since `known` was; if something was, it is what is known from then on.
    pub(super) async fn is_still(&self, known: &mut Forgotten) -> Result<bool, Fault> {
        let now = self.forgotten().await?;
        let is_still = now == *known;
        *known = now;
        Ok(is_still)
    }

    /// Takes images out of the results of a part; returns how many of them named one.
    pub(super) async fn forget_in_part(
        &self,
        folder: &str,
        part: u32,
        forgotten: &Forgotten,
    ) -> Result<u64, Fault> {
        if forgotten.is_empty() {
            return Ok(0);
        }
        let Some(mut rows) = self.results(folder, part).await? else { return Ok(0) };
        let changed = forgotten.take_out_of(&mut rows);
        if changed > 0 {
            let bytes = blocking(move || thicket_rankings::write(&rows)).await?.map_err(Fault::internal)?;
            self.is_there().await?;
            self.blobs.put(&results_name(folder, part), bytes, soon()).await.map_err(of_objects)?;
        }
        Ok(changed)
    }

    /// Puts the results of parts into one file, in order and without what is forgotten, in place of one that is there.
    pub(super) async fn write_file(
        &self,
        folder: &str,
        parts: &[u32],
        forgotten: &Forgotten,
    ) -> Result<(), Fault> {
        let mut upload = self.begin_file(folder).await?;
        let mut writer = FileWriter::new().map_err(Fault::internal)?;
        let written = async {
            for part in parts {
                let mut rows =
                    self.results(folder, *part).await?.ok_or_else(|| lost(&results_name(folder, *part)))?;
                forgotten.take_out_of(&mut rows);
                let appended;
                (writer, appended) = blocking(move || {
                    let bytes = writer.append(&rows);
                    (writer, bytes)
                })
                .await?;
                upload.write(appended.map_err(Fault::internal)?, soon()).await.map_err(of_objects)?;
            }
            let last = writer.finish().map_err(Fault::internal)?;
            upload.write(last, soon()).await.map_err(of_objects)
        };
        match written.await {
            Ok(()) => upload.finish(soon()).await.map_err(of_objects),
            Err(fault) => {
                if let Err(error) = upload.abort(soon()).await {
                    tracing::warn!(%error, "pieces of a file of results may be left");
                }
                Err(fault)
            }
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
    async fn begin_file(&self, folder: &str) -> Result<Upload, Fault> {
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
        // A large job has many objects; the store has its time for each page of them.
        let listed = self.listed(&job_folder(folder)).await?;
        let gone = futures::stream::iter(listed)
            .map(|entry| async move { self.blobs.delete(&entry.key, soon()).await })
            .buffer_unordered(PARALLEL_DELETES);
        gone.try_collect::<Vec<()>>().await.map(drop).map_err(of_objects)
    }
}

/// In a job's folder: the file of all results.
const FILE: &str = "results.parquet";

fn job_folder(folder: &str) -> String {
    format!("{JOBS}/{folder}")
}

fn owner_name(folder: &str) -> String {
    format!("{JOBS}/{folder}/job")
}

fn queries_name(folder: &str, part: u32) -> String {
    format!("{JOBS}/{folder}/queries/{part:05}")
}

fn results_name(folder: &str, part: u32) -> String {
    format!("{JOBS}/{folder}/parts/{part:05}.parquet")
}

fn file_name(folder: &str) -> String {
    format!("{JOBS}/{folder}/{FILE}")
}

/// The folder that an object is in, and its name there; `None` for one of another form.
fn in_folder(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(JOBS)?.strip_prefix('/')?.split_once('/')
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
