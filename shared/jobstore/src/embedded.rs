use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use thicket_jobs::{Change, Counts, Finish, JobId, Place, Token, Unit};
use tokio::sync::watch;

use crate::record::{Record, decode_counts, encode_counts};
use crate::{JobStore, Lease, MAX_JOBS, NewJob, Stir, StoreError, Stored, oldest_first};

const FILE: &str = "jobs.redb";
/// How often to look where nobody else can change anything.
const UNDISTURBED: Duration = Duration::from_secs(60);
/// Id to (version, record as JSON).
const JOBS: TableDefinition<&str, (i64, &[u8])> = TableDefinition::new("jobs");
/// (id, part) to counts as JSON, of parts that are done.
const PARTS: TableDefinition<(&str, u32), &[u8]> = TableDefinition::new("parts");

/// Jobs in a file of this process, which no other can open meanwhile.
///
/// Leases are held in memory: they end with the process, and nobody else could take them.
#[derive(Debug, Clone)]
pub struct EmbeddedJobs {
    inner: Arc<Mutex<Inner>>,
    stir: Arc<Stir>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` after an I/O error until the file could be opened again.
    database: Option<Database>,
    leases: HashMap<(JobId, Unit), Token>,
    last_token: i64,
    reported: HashSet<JobId>,
}

/// What ends an operation.
#[derive(Debug)]
enum Trouble {
    Store(StoreError),
    Redb(redb::Error),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<thicket_jobs::Refusal> for Trouble {
    fn from(refusal: thicket_jobs::Refusal) -> Self {
        Self::Store(refusal.into())
    }
}

impl<E: Into<redb::Error>> From<E> for Trouble
where
    E: RedbError,
{
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// The errors of redb that operations meet.
trait RedbError {}
impl RedbError for redb::TransactionError {}
impl RedbError for redb::TableError {}
impl RedbError for redb::StorageError {}
impl RedbError for redb::CommitError {}

impl EmbeddedJobs {
    /// Opens the file in a folder; both are made where they are not there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where another process has it open, or it cannot be read or made.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let refuse = |reason: &dyn std::fmt::Display| StoreError::Unavailable {
            reason: format!("{}: {reason}", folder.display()),
        };
        std::fs::create_dir_all(folder).map_err(|error| refuse(&error))?;
        let mut inner = Inner {
            path: folder.join(FILE),
            database: None,
            leases: HashMap::new(),
            last_token: 0,
            reported: HashSet::new(),
        };
        inner.run(|_, _| Ok(())).map_err(|error| refuse(&error))?;
        Ok(Self { inner: Arc::new(Mutex::new(inner)), stir: Arc::new(Stir::new()) })
    }

    /// Does something on a thread that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&mut inner.lock())).await {
            Ok(outcome) => outcome,
            Err(error) => Err(StoreError::Unavailable { reason: error.to_string() }),
        }
    }

    /// The same, for what others want to know of.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.run(work).await;
        self.stir.stir();
        outcome
    }
}

/// What is held in memory beside the file.
struct Memory<'a> {
    leases: &'a mut HashMap<(JobId, Unit), Token>,
    last_token: &'a mut i64,
    reported: &'a mut HashSet<JobId>,
}

impl Inner {
    fn run<T>(
        &mut self,
        work: impl FnOnce(&Database, Memory<'_>) -> Result<T, Trouble>,
    ) -> Result<T, StoreError> {
        let Self { path, database, leases, last_token, reported } = self;
        let open = match database {
            Some(open) => open,
            None => database.insert(open_file(path)?),
        };
        let memory = Memory { leases, last_token, reported };
        match work(open, memory) {
            Ok(done) => Ok(done),
            Err(Trouble::Store(error)) => Err(error),
            Err(Trouble::Redb(error)) => {
                // After an I/O error a database does nothing more until it is opened again.
                self.database = None;
                Err(of_redb(&error))
            }
        }
    }
}

fn open_file(path: &Path) -> Result<Database, StoreError> {
    let open = || -> Result<Database, redb::Error> {
        let database = Database::create(path)?;
        let write = database.begin_write()?;
        write.open_table(JOBS)?;
        write.open_table(PARTS)?;
        write.commit()?;
        Ok(database)
    };
    open().map_err(|error| of_redb(&error))
}

fn of_redb(error: &redb::Error) -> StoreError {
    let reason = error.to_string();
    match error {
        redb::Error::DatabaseAlreadyOpen => {
            StoreError::Unavailable { reason: "another process uses them".to_owned() }
        }
        redb::Error::Io(cause)
            if matches!(
                cause.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ) =>
        {
            StoreError::Full { reason }
        }
        _ => StoreError::Unavailable { reason },
    }
}

/// The record of a job, its version, and the job.
fn read(
    jobs: &impl ReadableTable<&'static str, (i64, &'static [u8])>,
    parts: &impl ReadableTable<(&'static str, u32), &'static [u8]>,
    leases: &HashMap<(JobId, Unit), Token>,
    id: &JobId,
) -> Result<(Record, Stored), Trouble> {
    let Some(found) = jobs.get(id.as_str())? else {
        return Err(StoreError::NotFound { job: id.clone() }.into());
    };
    let (version, bytes) = found.value();
    let record = Record::decode(id, bytes)?;
    let mut places = Vec::new();
    for entry in parts.range((id.as_str(), 0)..=(id.as_str(), u32::MAX))? {
        let (key, counts) = entry?;
        places.push((Unit::Part(key.value().1), Place::Done(decode_counts(id, counts.value())?)));
    }
    let held = leases.iter().filter(|((job, _), _)| job == id);
    places.extend(held.map(|((_, unit), token)| (*unit, Place::Leased(*token))));
    let stored = record.restore(id.clone(), version, places)?;
    Ok((record, stored))
}

#[async_trait]
impl JobStore for EmbeddedJobs {
    async fn create(&self, id: &JobId, job: &NewJob) -> Result<(), StoreError> {
        let (id, record) = (id.clone(), Record::of(job)?.encode());
        self.write(move |inner| {
            inner.run(|database, _| {
                let write = database.begin_write()?;
                {
                    let mut jobs = write.open_table(JOBS)?;
                    let same = jobs.get(id.as_str())?.map(|found| found.value().1 == record);
                    match same {
                        Some(true) => return Ok(()),
                        Some(false) => return Err(StoreError::Exists { job: id }.into()),
                        None => {}
                    }
                    if jobs.len()? >= MAX_JOBS as u64 {
                        return Err(StoreError::TooMany.into());
                    }
                    jobs.insert(id.as_str(), (1, record.as_slice()))?;
                }
                write.commit()?;
                Ok(())
            })
        })
        .await
    }

    async fn job(&self, id: &JobId) -> Result<Stored, StoreError> {
        let id = id.clone();
        self.run(move |inner| {
            inner.run(|database, memory| {
                let reading = database.begin_read()?;
                let (jobs, parts) = (reading.open_table(JOBS)?, reading.open_table(PARTS)?);
                Ok(read(&jobs, &parts, memory.leases, &id)?.1)
            })
        })
        .await
    }

    async fn jobs(&self) -> Result<Vec<Stored>, StoreError> {
        self.run(|inner| {
            inner.run(|database, memory| {
                let reading = database.begin_read()?;
                let (jobs, parts) = (reading.open_table(JOBS)?, reading.open_table(PARTS)?);
                let mut all = Vec::new();
                for entry in jobs.iter()? {
                    let (key, _) = entry?;
                    let Ok(id) = JobId::parse(key.value()) else { continue };
                    match read(&jobs, &parts, memory.leases, &id) {
                        Ok((_, stored)) => all.push(stored),
                        Err(Trouble::Store(error)) => {
                            if memory.reported.insert(id) {
                                tracing::error!(%error, "a job is left out");
                            }
                        }
                        Err(trouble) => return Err(trouble),
                    }
                }
                oldest_first(&mut all);
                Ok(all)
            })
        })
        .await
    }

    async fn take(&self, seen: &Stored, unit: Unit) -> Result<Lease, StoreError> {
        let (id, version) = (seen.id.clone(), seen.version);
        self.write(move |inner| {
            inner.run(|database, memory| {
                let reading = database.begin_read()?;
                let (jobs, parts) = (reading.open_table(JOBS)?, reading.open_table(PARTS)?);
                let (_, mut stored) = read(&jobs, &parts, memory.leases, &id)?;
                if stored.version != version {
                    return Err(StoreError::Changed.into());
                }
                let token = Token(*memory.last_token + 1);
                stored.job.take(unit, token)?;
                *memory.last_token += 1;
                memory.leases.insert((id.clone(), unit), token);
                Ok(Lease { job: id, unit, token })
            })
        })
        .await
    }

    async fn finish(&self, lease: &Lease, counts: Counts) -> Result<Finish, StoreError> {
        let Lease { job: id, unit, token } = lease.clone();
        self.write(move |inner| {
            inner.run(|database, memory| {
                let write = database.begin_write()?;
                let finish = {
                    let mut jobs = write.open_table(JOBS)?;
                    let mut parts = write.open_table(PARTS)?;
                    let (record, mut stored) = read(&jobs, &parts, memory.leases, &id)?;
                    let finish = stored.job.finish(unit, token, counts)?;
                    if finish == Finish::Before {
                        return Ok(finish);
                    }
                    match unit {
                        Unit::Part(part) => {
                            let counts = encode_counts(counts);
                            parts.insert((id.as_str(), part), counts.as_slice())?;
                        }
                        Unit::File => {
                            let record = record.standing(&stored.job).encode();
                            jobs.insert(id.as_str(), (stored.version + 1, record.as_slice()))?;
                            parts.retain_in((id.as_str(), 0)..=(id.as_str(), u32::MAX), |_, _| false)?;
                        }
                        Unit::Removal => {
                            jobs.remove(id.as_str())?;
                            parts.retain_in((id.as_str(), 0)..=(id.as_str(), u32::MAX), |_, _| false)?;
                        }
                    }
                    finish
                };
                write.commit()?;
                memory.leases.remove(&(id, unit));
                Ok(finish)
            })
        })
        .await
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError> {
        let Lease { job, unit, token } = lease.clone();
        let key = (job, unit);
        self.write(move |inner| {
            if inner.leases.get(&key) == Some(&token) {
                inner.leases.remove(&key);
            }
            Ok(())
        })
        .await
    }

    async fn change(&self, id: &JobId, change: Change) -> Result<Stored, StoreError> {
        let id = id.clone();
        self.write(move |inner| {
            inner.run(|database, memory| {
                let write = database.begin_write()?;
                let stored = {
                    let mut jobs = write.open_table(JOBS)?;
                    let parts = write.open_table(PARTS)?;
                    let (record, mut stored) = read(&jobs, &parts, memory.leases, &id)?;
                    stored.job.change(change)?;
                    let next = record.clone().standing(&stored.job);
                    if next == record {
                        return Ok(stored);
                    }
                    stored.version += 1;
                    jobs.insert(id.as_str(), (stored.version, next.encode().as_slice()))?;
                    stored
                };
                write.commit()?;
                Ok(stored)
            })
        })
        .await
    }

    fn stirred(&self) -> watch::Receiver<u64> {
        self.stir.subscribe()
    }

    fn interval(&self) -> Duration {
        UNDISTURBED
    }

    async fn close(&self) {
        self.inner.lock().leases.clear();
        self.stir.stir();
    }
}
