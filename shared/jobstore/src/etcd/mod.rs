//! Jobs in etcd.
//!
//! | key | value |
//! | --- | --- |
//! | `PREFIX/v1/jobs/JOB` | the record, as JSON |
//! | `PREFIX/v1/job-parts/JOB/PART` | counts of a part that is done, as JSON; gone once the job is done |
//! | `PREFIX/v1/job-leases/JOB/UNIT` | who works on it; under the lease of that process |
//!
//! A token is the revision that made a lease's key: no two are alike, and later ones are larger.

mod keys;
mod lease;
mod link;
mod snapshot;
mod watcher;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use parking_lot::Mutex;
use thicket_discovery::{EtcdConfig, InstanceId};
use thicket_jobs::{Change, Counts, Finish, JobId, Refusal, Token, Unit};
use tokio::sync::watch;
use uuid::Uuid;

use crate::record::{Record, encode_counts};
use crate::{JobStore, Lease, MAX_JOBS, NewJob, Stir, StoreError, Stored, oldest_first};
use keys::Keys;
use lease::LeaseKeeper;
use link::Link;
use watcher::Watcher;

/// Attempts at something while others change the same job.
const ATTEMPTS: usize = 16;
/// How often to look for what others have changed: while a watch tells it, and while none does.
const WATCHED: Duration = Duration::from_secs(30);
const UNWATCHED: Duration = Duration::from_secs(5);

/// Jobs in etcd, for any number of processes.
///
/// The lease that this process's units are under is renewed on a thread of its own. While etcd is away nothing is taken or
/// finished, and what is under way goes on.
#[derive(Debug)]
pub struct EtcdJobs {
    keys: Keys,
    owner: InstanceId,
    link: Link,
    lease: LeaseKeeper,
    stir: Arc<Stir>,
    watcher: Watcher,
    reported: Mutex<HashSet<JobId>>,
}

impl EtcdJobs {
    /// Begins to hold a lease. etcd need not be there. `owner` is what others see of who works on something.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] for settings that do not do, or where the system gives no thread.
    pub fn start(config: &EtcdConfig, owner: InstanceId) -> Result<Self, StoreError> {
        config.check().map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
        let (keys, stir) = (Keys::of(&config.prefix), Arc::new(Stir::new()));
        Ok(Self {
            owner,
            link: Link::new(config.clone()),
            lease: LeaseKeeper::start(config.clone(), stir.clone())?,
            watcher: Watcher::start(config.clone(), keys.clone(), stir.clone())?,
            keys,
            stir,
            reported: Mutex::new(HashSet::new()),
        })
    }

    /// Makes a transaction that may be made twice.
    async fn transact(&self, what: &'static str, txn: Txn) -> Result<Outcome, StoreError> {
        let response = self.link.txn(what, txn).await?;
        self.stir.stir();
        let revision = response.header().map(|header| header.revision()).unwrap_or_default();
        let found = response.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(found) => Some(
                found
                    .kvs()
                    .first()
                    .map(|entry| Found { value: entry.value().to_vec(), created: entry.create_revision() }),
            ),
            _ => None,
        });
        Ok(Outcome { succeeded: response.succeeded(), revision, found: found.collect() })
    }

    /// The condition that a lease holds.
    fn holds(&self, lease: &Lease) -> Compare {
        let key = self.keys.lease(&lease.job, lease.unit);
        Compare::create_revision(key, CompareOp::Equal, lease.token.0)
    }

    async fn finish_part(
        &self,
        lease: &Lease,
        part: u32,
        counts: Counts,
    ) -> Result<Option<Finish>, StoreError> {
        let (record, done) = (self.keys.record(&lease.job), self.keys.part(&lease.job, part));
        let finish = Txn::new()
            .when([
                self.holds(lease),
                Compare::version(record.as_str(), CompareOp::Greater, 0),
                Compare::version(done.as_str(), CompareOp::Equal, 0),
            ])
            .and_then([
                TxnOp::put(done, encode_counts(counts), None),
                TxnOp::delete(self.keys.lease(&lease.job, lease.unit), None),
            ]);
        let outcome = self.transact("finish a part", finish).await?;
        Ok(outcome.succeeded.then_some(Finish::Now))
    }

    async fn finish_file(&self, lease: &Lease, mut stored: Stored) -> Result<Option<Finish>, StoreError> {
        let version = stored.version;
        stored.job.finish(lease.unit, lease.token, Counts::default())?;
        let record = self.record_of(&stored)?;
        let key = self.keys.record(&lease.job);
        let finish = Txn::new()
            .when([self.holds(lease), Compare::mod_revision(key.as_str(), CompareOp::Equal, version)])
            .and_then([
                TxnOp::put(key, record.encode(), None),
                TxnOp::delete(self.keys.parts(&lease.job), Some(keys::below())),
                TxnOp::delete(self.keys.lease(&lease.job, lease.unit), None),
            ]);
        let outcome = self.transact("finish a job", finish).await?;
        Ok(outcome.succeeded.then_some(Finish::Now))
    }

    async fn finish_removal(&self, lease: &Lease) -> Result<Option<Finish>, StoreError> {
        let remove = Txn::new().when([self.holds(lease)]).and_then([
            TxnOp::delete(self.keys.record(&lease.job), None),
            TxnOp::delete(self.keys.parts(&lease.job), Some(keys::below())),
            TxnOp::delete(self.keys.leases(&lease.job), Some(keys::below())),
        ]);
        let outcome = self.transact("remove a job", remove).await?;
        Ok(outcome.succeeded.then_some(Finish::Now))
    }

    /// The record of a job as it stands in memory.
    fn record_of(&self, stored: &Stored) -> Result<Record, StoreError> {
        let new = NewJob {
            created_unix_ms: stored.created_unix_ms,
            plan: stored.job.plan(),
            deadline: stored.job.deadline(),
            body: stored.body.clone(),
        };
        Ok(Record::of(&new)?.standing(&stored.job))
    }
}

/// What came of a transaction.
struct Outcome {
    succeeded: bool,
    revision: i64,
    /// One for each key that it looked up.
    found: Vec<Option<Found>>,
}

/// A key that a transaction looked up.
struct Found {
    value: Vec<u8>,
    created: i64,
}

#[async_trait]
impl JobStore for EtcdJobs {
    async fn create(&self, id: &JobId, job: &NewJob) -> Result<(), StoreError> {
        let record = Record::of(job)?.encode();
        if self.count().await? >= MAX_JOBS {
            return Err(StoreError::TooMany);
        }
        let key = self.keys.record(id);
        let create = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), record.as_slice(), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let outcome = self.transact("create a job", create).await?;
        let same = outcome
            .found
            .first()
            .is_some_and(|found| found.as_ref().is_some_and(|found| found.value == record));
        // The answer to an earlier attempt may have been lost.
        if outcome.succeeded || same { Ok(()) } else { Err(StoreError::Exists { job: id.clone() }) }
    }

    async fn job(&self, id: &JobId) -> Result<Stored, StoreError> {
        self.read_one(id).await
    }

    async fn jobs(&self) -> Result<Vec<Stored>, StoreError> {
        let mut jobs = Vec::new();
        for read in self.read_all().await? {
            match read {
                Ok(stored) => jobs.push(stored),
                Err(StoreError::Damaged { job, reason }) => {
                    if self.reported.lock().insert(job.clone()) {
                        tracing::error!(%job, reason, "a job is left out: its record is damaged");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        oldest_first(&mut jobs);
        Ok(jobs)
    }

    async fn take(&self, seen: &Stored, unit: Unit) -> Result<Lease, StoreError> {
        seen.job.may_take(unit)?;
        let Some(etcd_lease) = self.lease.held() else {
            return Err(StoreError::Unavailable { reason: "no lease of etcd is held".to_owned() });
        };
        let key = self.keys.lease(&seen.id, unit);
        // Tells this attempt from every other, so that one whose answer was lost is known again.
        let value = format!("{} {}", self.owner, Uuid::new_v4().simple());
        let mut when = vec![
            Compare::mod_revision(self.keys.record(&seen.id), CompareOp::Equal, seen.version),
            Compare::version(key.as_str(), CompareOp::Equal, 0),
        ];
        if let Unit::Part(part) = unit {
            when.push(Compare::version(self.keys.part(&seen.id, part), CompareOp::Equal, 0));
        }
        let options = PutOptions::new().with_lease(etcd_lease);
        let take = Txn::new()
            .when(when)
            .and_then([TxnOp::put(key.as_str(), value.as_str(), Some(options))])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let outcome = self.transact("take a part", take).await?;
        let token = match outcome.found.into_iter().next().flatten() {
            _ if outcome.succeeded => outcome.revision,
            Some(found) if found.value == value.as_bytes() => found.created,
            Some(_) => return Err(Refusal::Taken.into()),
            None => return Err(StoreError::Changed),
        };
        Ok(Lease { job: seen.id.clone(), unit, token: Token(token) })
    }

    async fn finish(&self, lease: &Lease, counts: Counts) -> Result<Finish, StoreError> {
        for _ in 0..ATTEMPTS {
            let finished = match lease.unit {
                Unit::Part(part) => self.finish_part(lease, part, counts).await?,
                Unit::Removal => self.finish_removal(lease).await?,
                Unit::File => {
                    let stored = self.read_one(&lease.job).await?;
                    match stored.job.may_finish(lease.unit, lease.token)? {
                        Finish::Before => Some(Finish::Before),
                        Finish::Now => self.finish_file(lease, stored).await?,
                    }
                }
            };
            if let Some(finish) = finished {
                return Ok(finish);
            }
            // Why not: it was done before, the lease has ended, or the record changed in between.
            if self.read_one(&lease.job).await?.job.may_finish(lease.unit, lease.token)? == Finish::Before {
                return Ok(Finish::Before);
            }
        }
        Err(StoreError::Changed)
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError> {
        let delete = TxnOp::delete(self.keys.lease(&lease.job, lease.unit), None);
        let give_back = Txn::new().when([self.holds(lease)]).and_then([delete]);
        self.transact("give a part back", give_back).await.map(drop)
    }

    async fn change(&self, id: &JobId, change: Change) -> Result<Stored, StoreError> {
        for _ in 0..ATTEMPTS {
            let mut stored = self.read_one(id).await?;
            let before = stored.job.clone();
            stored.job.change(change)?;
            if stored.job == before {
                return Ok(stored);
            }
            let key = self.keys.record(id);
            let put = Txn::new()
                .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, stored.version)])
                .and_then([TxnOp::put(key, self.record_of(&stored)?.encode(), None)]);
            let outcome = self.transact("change a job", put).await?;
            if outcome.succeeded {
                return Ok(Stored { version: outcome.revision, ..stored });
            }
        }
        Err(StoreError::Changed)
    }

    fn stirred(&self) -> watch::Receiver<u64> {
        self.stir.subscribe()
    }

    fn interval(&self) -> Duration {
        if self.watcher.follows() { WATCHED } else { UNWATCHED }
    }

    async fn close(&self) {
        self.lease.close().await;
    }
}
