//! Jobs in etcd, and several processes that compete for them.

use std::sync::Arc;

use thicket_discovery::InstanceId;
use thicket_jobs::{Counts, Finish, Place, Refusal, Unit};
use thicket_jobstore::{EtcdJobs, Lease, StoreError, Stored};

use crate::contract::{Store, keeps_the_contract};
use crate::etcd::Etcd;
use crate::support::{eventually, id, job};

fn open(etcd: &Etcd) -> Store {
    Arc::new(EtcdJobs::start(&etcd.config(), InstanceId::random()).unwrap())
}

async fn start() -> Option<(Store, Etcd)> {
    let etcd = Etcd::start().await?;
    let store = open(&etcd);
    holds_a_lease(&store).await;
    Some((store, etcd))
}

/// Waits until a store can take something.
async fn holds_a_lease(store: &Store) {
    store.create(&id("probe"), &job(1)).await.unwrap();
    let seen = store.job(&id("probe")).await.unwrap();
    let lease = eventually_takes(store, &seen, Unit::Part(0)).await;
    store.give_back(&lease).await.unwrap();
    store.change(&id("probe"), thicket_jobs::Change::Delete).await.unwrap();
    let seen = store.job(&id("probe")).await.unwrap();
    let removal = store.take(&seen, Unit::Removal).await.unwrap();
    store.finish(&removal, Counts::default()).await.unwrap();
}

async fn eventually_takes(store: &Store, seen: &Stored, unit: Unit) -> Lease {
    let taken = tokio::sync::OnceCell::new();
    let takes = async || match store.take(seen, unit).await {
        Ok(lease) => taken.set(lease).is_ok(),
        Err(_) => false,
    };
    eventually("the unit can be taken", takes, String::new).await;
    taken.into_inner().unwrap()
}

keeps_the_contract!(start());

#[tokio::test(flavor = "multi_thread")]
async fn what_one_has_another_takes_when_its_lease_has_ended() {
    let Some((first, etcd)) = start().await else { return };
    let second = open(&etcd);
    first.create(&id("a"), &job(1)).await.unwrap();
    let seen = first.job(&id("a")).await.unwrap();
    let lost = first.take(&seen, Unit::Part(0)).await.unwrap();
    // Once the second can take anything at all, it is refused because the first has it.
    let refused = async || second.take(&seen, Unit::Part(0)).await == Err(Refusal::Taken.into());
    eventually("the part is taken", refused, String::new).await;

    // Gone without a word: what a crash leaves.
    drop(first);
    let taken = eventually_takes(&second, &seen, Unit::Part(0)).await;
    assert!(taken.token > lost.token);
    let late = open(&etcd);
    assert_eq!(late.finish(&lost, Counts::default()).await, Err(Refusal::LeaseLost.into()));
    assert_eq!(second.finish(&taken, Counts { succeeded: 1, failed: 0 }).await, Ok(Finish::Now));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_closed_is_free_at_once() {
    let Some((first, etcd)) = start().await else { return };
    let second = open(&etcd);
    first.create(&id("a"), &job(1)).await.unwrap();
    let seen = first.job(&id("a")).await.unwrap();
    first.take(&seen, Unit::Part(0)).await.unwrap();
    first.close().await;
    assert_eq!(second.job(&id("a")).await.unwrap().job.place(Unit::Part(0)), Place::Pending);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_etcd_is_away_nothing_is_said_to_be_done_and_afterwards_it_goes_on() {
    let Some((store, mut etcd)) = start().await else { return };
    store.create(&id("a"), &job(1)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let lease = store.take(&seen, Unit::Part(0)).await.unwrap();
    etcd.nodes[0].kill();
    let one = Counts { succeeded: 1, failed: 0 };
    assert!(matches!(store.finish(&lease, one).await, Err(StoreError::Unavailable { .. })));
    assert!(matches!(store.jobs().await, Err(StoreError::Unavailable { .. })));
    etcd.nodes[0].restart();
    etcd.nodes[0].answers().await;

    // The lease may or may not have outlived it; either way the part gets done once.
    let finished = async || match store.finish(&lease, one).await {
        Ok(_) => true,
        Err(StoreError::Refused(Refusal::LeaseLost)) => {
            let Ok(seen) = store.job(&id("a")).await else { return false };
            let Ok(again) = store.take(&seen, Unit::Part(0)).await else { return false };
            store.finish(&again, one).await.is_ok()
        }
        Err(_) => false,
    };
    eventually("the part is done", finished, String::new).await;
    assert_eq!(store.job(&id("a")).await.unwrap().job.place(Unit::Part(0)), Place::Done(one));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_among_the_keys_is_left_out() {
    let Some((store, etcd)) = start().await else { return };
    store.create(&id("a"), &job(1)).await.unwrap();
    let mut client = etcd.client().await;
    for key in [
        "/thicket/v1/jobs/b",
        "/thicket/v1/jobs/NO",
        "/thicket/v1/job-leases/a/x",
        "/thicket/v1/job-parts/a/9",
    ] {
        client.put(key, "garbage", None).await.unwrap();
    }
    assert!(matches!(store.job(&id("b")).await, Err(StoreError::Damaged { .. })));
    let ids: Vec<_> = store.jobs().await.unwrap().into_iter().map(|job| job.id).collect();
    // The part of `a` that is garbage hides it too: its counts would be wrong.
    assert_eq!(ids, []);
    client.delete("/thicket/v1/job-parts/a/9", None).await.unwrap();
    assert_eq!(store.jobs().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_parts_are_read_page_by_page() {
    let Some((store, etcd)) = start().await else { return };
    store.create(&id("a"), &job(2_500)).await.unwrap();
    let mut client = etcd.client().await;
    for part in 0..2_400 {
        let key = format!("/thicket/v1/job-parts/a/{part:05}");
        client.put(key, r#"{"succeeded":1,"failed":0}"#, None).await.unwrap();
    }
    for read in [store.job(&id("a")).await.unwrap(), store.jobs().await.unwrap().remove(0)] {
        let progress = read.job.progress();
        assert_eq!((progress.done, progress.pending, progress.queries.succeeded), (2_400, 100, 2_400));
    }
}
