//! Jobs in a file.

use std::sync::Arc;

use tempfile::TempDir;
use thicket_jobs::{Counts, Place, Unit};
use thicket_jobstore::{EmbeddedJobs, JobStore, StoreError};

use crate::contract::{Store, keeps_the_contract};
use crate::support::{id, job};

async fn start() -> Option<(Store, TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let store: Store = Arc::new(EmbeddedJobs::open(folder.path()).unwrap());
    Some((store, folder))
}

keeps_the_contract!(start());

#[tokio::test]
async fn what_is_done_outlives_the_process_and_leases_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedJobs::open(folder.path()).unwrap();
    store.create(&id("a"), &job(3)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let done = store.take(&seen, Unit::Part(0)).await.unwrap();
    store.finish(&done, Counts { succeeded: 1, failed: 0 }).await.unwrap();
    let _lease = store.take(&seen, Unit::Part(1)).await.unwrap();
    drop(store);

    let again = EmbeddedJobs::open(folder.path()).unwrap();
    let read = again.job(&id("a")).await.unwrap().job;
    assert_eq!(read.place(Unit::Part(0)), Place::Done(Counts { succeeded: 1, failed: 0 }));
    assert_eq!(read.place(Unit::Part(1)), Place::Pending);
}

#[tokio::test]
async fn a_file_is_opened_by_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let _first = EmbeddedJobs::open(folder.path()).unwrap();
    let second = EmbeddedJobs::open(folder.path()).unwrap_err();
    assert!(
        matches!(&second, StoreError::Unavailable { reason } if reason.contains("another process")),
        "{second}"
    );
}
