//! Jobs in etcd, and several processes that compete for them.

use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::InstanceId;
use thicket_jobs::{Counts, Finish, Place, Refusal, Unit};
use thicket_jobstore::{EtcdJobs, Lease, StoreError, Stored};
use tokio::sync::watch;

use crate::contract::{Store, keeps_the_contract};
use crate::etcd::Etcd;
use crate::support::{DEADLINE, eventually, id, job};

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

/// Waits until a store has said that something changed since it was asked last.
async fn is_stirred(stirred: &mut watch::Receiver<u64>) {
    let told = tokio::time::timeout(DEADLINE, stirred.changed()).await;
    told.expect("it is stirred in time").expect("the store is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_changes_the_other_hears_of_without_looking() {
    let Some((first, etcd)) = start().await else { return };
    let second = open(&etcd);
    // It has its lease and its watch, and stirs no more by itself.
    let mut stirred = second.stirred();
    let settled = async || second.interval() > Duration::from_secs(10);
    eventually("the jobs are watched", settled, String::new).await;
    holds_a_lease(&second).await;
    let quiet = async |stirred: &mut watch::Receiver<u64>| {
        tokio::time::timeout(Duration::from_millis(300), stirred.changed()).await.is_err()
    };
    while !quiet(&mut stirred).await {}

    first.create(&id("a"), &job(1)).await.unwrap();
    is_stirred(&mut stirred).await;
    let seen = second.job(&id("a")).await.unwrap();
    let lease = first.take(&seen, Unit::Part(0)).await.unwrap();
    is_stirred(&mut stirred).await;
    // Gone without a word: what runs out by itself is heard of as well.
    drop(first);
    let is_free = async || {
        let place = second.job(&id("a")).await.unwrap().job.place(lease.unit);
        place == Place::Pending
    };
    stirred.mark_unchanged();
    is_stirred(&mut stirred).await;
    eventually("the part is free", is_free, String::new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_broke_is_taken_up_again_and_looking_helps_meanwhile() {
    let Some((first, mut etcd)) = start().await else { return };
    let watched = async || first.interval() > Duration::from_secs(10);
    eventually("the jobs are watched", watched, String::new).await;
    let mut stirred = first.stirred();
    etcd.nodes[0].kill();
    let broken = async || first.interval() < Duration::from_secs(10);
    eventually("the watch is known to be broken", broken, String::new).await;
    etcd.nodes[0].restart();
    etcd.nodes[0].answers().await;
    eventually("the jobs are watched again", watched, String::new).await;
    // What others changed before is looked at once more.
    is_stirred(&mut stirred).await;
    let second = open(&etcd);
    let made = async || second.create(&id("a"), &job(1)).await.is_ok();
    eventually("a job is made", made, String::new).await;
    stirred.mark_unchanged();
    let heard = async || first.job(&id("a")).await.is_ok();
    eventually("it is there", heard, String::new).await;
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
