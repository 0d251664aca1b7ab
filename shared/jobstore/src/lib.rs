//! Where the records of jobs and the leases of their parts are kept: in etcd, where several coordinators compete for them
//! and any takes over what another leaves, or in a file of one coordinator.
//!
//! What may be done is asked of [`thicket_jobs::Job`]; a store makes it durable, once, whoever asks at the same time.
//! Queries and results are too large for either and are kept elsewhere.

mod embedded;
mod etcd;
mod record;

pub use embedded::EmbeddedJobs;
pub use etcd::EtcdJobs;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use thicket_jobs::{Change, Counts, Finish, Job, JobId, Plan, Refusal, Token, Unit};
use tokio::sync::watch;

/// Most jobs at a time.
pub const MAX_JOBS: usize = 1_000;
/// Most bytes of [`NewJob::body`].
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// A job to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// When it was made, milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: i64,
    /// How it is cut.
    pub plan: Plan,
    /// When it is given up, milliseconds since 1970-01-01 UTC.
    pub deadline: Option<i64>,
    /// What the store need not understand, at most [`MAX_BODY_BYTES`].
    pub body: Bytes,
}

/// A job as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: JobId,
    /// When it was made, milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: i64,
    /// As in [`NewJob`].
    pub body: Bytes,
    /// Where it stands.
    pub job: Job,
    /// Changes with every change of what its callers want.
    version: i64,
}

/// The right to do a unit of a job, until it is given back or runs out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The unit.
    pub unit: Unit,
    /// Proves it.
    pub token: Token,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such job.
    #[error("job `{job}` does not exist")]
    NotFound {
        /// Its id.
        job: JobId,
    },
    /// There is another job of that id.
    #[error("job `{job}` exists already")]
    Exists {
        /// Its id.
        job: JobId,
    },
    /// The job does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Somebody else changed the job meanwhile: look again.
    #[error("the job has changed meanwhile")]
    Changed,
    /// No more jobs can be kept.
    #[error("{MAX_JOBS} jobs are kept, the most there may be: delete one")]
    TooMany,
    /// The body is too large.
    #[error("a job's record takes {MAX_BODY_BYTES} bytes, got {actual}")]
    TooLarge {
        /// Its bytes.
        actual: usize,
    },
    /// There is no space left.
    #[error("jobs cannot be written: {reason}")]
    Full {
        /// The cause.
        reason: String,
    },
    /// The store is away. What was asked for may have been done.
    #[error("jobs cannot be reached: {reason}")]
    Unavailable {
        /// Why, in one line.
        reason: String,
    },
    /// What is kept of a job makes no sense.
    #[error("the record of job `{job}` is damaged: {reason}")]
    Damaged {
        /// Its id.
        job: JobId,
        /// What is wrong.
        reason: String,
    },
}

/// Jobs, durably. Every method may be called by many at once, in this process and in others.
#[async_trait]
pub trait JobStore: std::fmt::Debug + Send + Sync {
    /// Keeps a job, of which nothing is done. Keeping the same again is fine.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::TooMany`], [`StoreError::TooLarge`], [`StoreError::Full`],
    /// [`StoreError::Unavailable`].
    async fn create(&self, id: &JobId, job: &NewJob) -> Result<(), StoreError>;

    /// One job.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Damaged`], [`StoreError::Unavailable`].
    async fn job(&self, id: &JobId) -> Result<Stored, StoreError>;

    /// Every job, oldest first, of equal age by id. One that is damaged is left out, and logged once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn jobs(&self) -> Result<Vec<Stored>, StoreError>;

    /// Takes a unit of a job that was read before.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Changed`], [`StoreError::NotFound`], [`StoreError::Unavailable`].
    async fn take(&self, seen: &Stored, unit: Unit) -> Result<Lease, StoreError>;

    /// Records that a unit is done, and ends the lease. Of a removal the record goes as well; of the file the counts are
    /// those of the parts.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the lease has ended, [`StoreError::NotFound`], [`StoreError::Full`],
    /// [`StoreError::Unavailable`].
    async fn finish(&self, lease: &Lease, counts: Counts) -> Result<Finish, StoreError>;

    /// Ends a lease before its work is done; that it has ended is fine.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Does what a caller asks for, and says how the job is then.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::NotFound`], [`StoreError::Full`], [`StoreError::Unavailable`].
    async fn change(&self, id: &JobId, change: Change) -> Result<Stored, StoreError>;

    /// Changes after every change that this process made, and soon after those of others where the store hears of them.
    fn stirred(&self) -> watch::Receiver<u64>;

    /// How often the jobs should be looked at where nothing has stirred: others may have changed something unheard.
    fn interval(&self) -> Duration;

    /// Ends every lease of this process.
    async fn close(&self);
}

/// Says that something has changed.
#[derive(Debug)]
pub(crate) struct Stir(watch::Sender<u64>);

impl Stir {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(crate) fn stir(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// In the order of [`JobStore::jobs`].
pub(crate) fn oldest_first(jobs: &mut [Stored]) {
    jobs.sort_by(|a, b| (a.created_unix_ms, &a.id).cmp(&(b.created_unix_ms, &b.id)));
}
