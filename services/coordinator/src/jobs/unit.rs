//! The work of one unit of a job, under its lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use thicket_jobs::{Counts, Finish, Pauses, Refusal, Unit};
use thicket_jobstore::{Lease, StoreError};
use thicket_proto::v1::{JobQuery, JobSpec};
use thicket_rankings::Row;
use thicket_runtime::Fault;
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{Instrument, info_span};

use super::fault::of_store;
use super::query::{random, search};
use super::{Jobs, rows};
use crate::spans::number;

/// Pauses while the end of a unit cannot be recorded.
const PAUSES: Pauses = Pauses { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
/// Longest wait for a lease to be given back; it runs out by itself.
const GOODBYE: Duration = Duration::from_secs(3);

/// How a unit left this coordinator's hands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// It is done.
    Done { counts: Counts, finish: Finish },
    /// Nobody wants it any more, or somebody else has it, or this coordinator leaves.
    Stopped,
    /// It cannot be done just now.
    Failed(Fault),
}

/// One unit and what it takes to do it.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) jobs: Arc<Jobs>,
    pub(super) spec: JobSpec,
    /// Folder of the job's objects.
    pub(super) folder: String,
    /// Places in the job of the queries of every part.
    pub(super) plan: thicket_jobs::Plan,
    /// The lease, which may be replaced by another after etcd was away.
    pub(super) lease: watch::Receiver<Lease>,
    pub(super) stop: watch::Receiver<bool>,
    /// Queries that have no result yet.
    pub(super) left: Arc<AtomicUsize>,
    /// Told whenever a query has.
    pub(super) progress: Arc<Notify>,
    /// The coordinator's places for queries.
    pub(super) places: Arc<Semaphore>,
    /// Longest time of one attempt at a query.
    pub(super) attempt: Duration,
}

impl Work {
    /// Does the unit until it is done or stopped. The lease has ended when this returns, or will soon.
    pub(super) async fn run(mut self) -> Outcome {
        let unit = self.lease.borrow().unit;
        let mut stop = self.stop.clone();
        let stopped = async {
            if stop.wait_for(|stop| *stop).await.is_err() {
                // The runner is gone without a word, and this with it in a moment.
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            () = stopped => Outcome::Stopped,
            done = self.work(unit) => match done {
                Ok((counts, finish)) => Outcome::Done { counts, finish },
                Err(fault) => Outcome::Failed(fault),
            },
        };
        if !matches!(outcome, Outcome::Done { .. }) {
            let lease = self.lease.borrow_and_update().clone();
            // One that cannot be given back runs out.
            let _ = tokio::time::timeout(GOODBYE, self.jobs.store.give_back(&lease)).await;
        }
        outcome
    }

    async fn work(&self, unit: Unit) -> Result<(Counts, Finish), Fault> {
        let counts = match unit {
            Unit::Part(part) => self.part(part).await?,
            Unit::File => self.file().await.map(|()| Counts::default())?,
            Unit::Removal => {
                self.jobs.objects.remove(&self.folder).await?;
                Counts::default()
            }
        };
        let finish = self.finish(counts).await?;
        Ok((counts, finish))
    }

    /// Searches for the queries of a part, unless an owner before did and had no time to say so.
    async fn part(&self, part: u32) -> Result<Counts, Fault> {
        let objects = &self.jobs.objects;
        let rows = match objects.results(&self.folder, part).await? {
            Some(rows) => rows,
            None => {
                let queries = objects.queries(&self.folder, part).await?;
                let rows = self.search_all(self.plan.range(part).start, queries).await;
                objects.put_results(&self.folder, part, rows).await?
            }
        };
        // Images may have been forgotten since they were found.
        let mut forgotten = objects.forgotten().await?;
        loop {
            objects.forget_in_part(&self.folder, part, &forgotten).await?;
            if objects.is_still(&mut forgotten).await? {
                break;
            }
        }
        self.left.store(0, Ordering::Relaxed);
        self.progress.notify_one();
        Ok(rows::counts(&rows))
    }

    async fn search_all(&self, first: u64, queries: Vec<JobQuery>) -> Vec<Row> {
        let count = queries.len().max(1);
        let searches = queries.into_iter().zip(first..).map(|(query, position)| async move {
            let id = query.id.clone();
            let request = super::input::search_of(&self.spec, query);
            let Jobs { clients, defaults, .. } = &*self.jobs;
            let found = search(request, clients, defaults, &self.places, self.attempt)
                .instrument(info_span!("job_query", position = number(position)))
                .await;
            self.left.fetch_sub(1, Ordering::Relaxed);
            self.progress.notify_one();
            rows::row(position, id, found)
        });
        // How many run at a time is for the places to say.
        let mut rows: Vec<Row> = stream::iter(searches).buffer_unordered(count).collect().await;
        rows.sort_unstable_by_key(|row| row.position);
        rows
    }

    /// Puts the results of all parts into one file, in order.
    async fn file(&self) -> Result<(), Fault> {
        let objects = &self.jobs.objects;
        let parts: Vec<u32> = (0..self.plan.parts()).collect();
        let mut forgotten = objects.forgotten().await?;
        loop {
            objects.write_file(&self.folder, &parts, &forgotten).await?;
            if objects.is_still(&mut forgotten).await? {
                return Ok(());
            }
        }
    }

    /// Records that the unit is done, however long that takes.
    async fn finish(&self, counts: Counts) -> Result<Finish, Fault> {
        let mut lease = self.lease.clone();
        let mut failures = 0;
        loop {
            let held = lease.borrow_and_update().clone();
            match self.jobs.store.finish(&held, counts).await {
                Ok(finish) => return Ok(finish),
                // Another lease may come, or the word to stop.
                Err(StoreError::Refused(Refusal::LeaseLost)) => {
                    if lease.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Err(error @ (StoreError::NotFound { .. } | StoreError::Damaged { .. })) => {
                    return Err(of_store(error));
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(%error, job = %held.job, unit = ?held.unit, "the end of work cannot be recorded yet");
                    }
                    tokio::time::sleep(PAUSES.after(failures, None, random())).await;
                }
            }
        }
    }
}
