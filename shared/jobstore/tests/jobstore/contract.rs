//! What every store does. Each function is one behaviour, on a store of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use thicket_jobs::{Change, Counts, Finish, Place, Refusal, State, Unit, Wish};
use thicket_jobstore::{JobStore, NewJob, StoreError};

use crate::support::{id, job};

pub(crate) type Store = Arc<dyn JobStore>;

const ONE: Counts = Counts { succeeded: 1, failed: 0 };

/// Runs every behaviour as a test of its own on what `$start` gives: a store and what must outlive it, or nothing on a
/// machine that may do without.
macro_rules! keeps_the_contract {
    ($start:expr) => {
        $crate::contract::keeps_the_contract! {
            $start;
            a_job_is_read_as_it_was_made
            a_job_may_be_made_again_alike_and_not_otherwise
            jobs_are_listed_from_the_oldest
            of_many_takers_exactly_one_gets_a_part
            what_is_given_back_is_taken_under_a_later_token
            a_late_owner_changes_nothing
            a_job_is_done_part_by_part
            the_file_is_not_taken_before_every_part_is_done
            a_cancelled_job_gives_nothing_out_until_it_is_resumed
            who_saw_an_older_job_takes_nothing
            a_job_is_removed_when_nobody_works_on_it
            what_is_not_there_is_not_found
            a_deadline_can_be_moved
        }
    };
    ($start:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let Some((store, _kept)) = $start.await else { return };
                $crate::contract::$name(store.clone()).await;
                store.close().await;
            }
        )*
    };
}
pub(crate) use keeps_the_contract;

pub(crate) async fn a_job_is_read_as_it_was_made(store: Store) {
    let made = NewJob { deadline: Some(99), ..job(3) };
    store.create(&id("a"), &made).await.unwrap();
    let read = store.job(&id("a")).await.unwrap();
    assert_eq!((read.created_unix_ms, read.body.clone()), (7, made.body));
    assert_eq!((read.job.plan(), read.job.deadline()), (made.plan, Some(99)));
    assert_eq!(read.job.state(0), State::Pending);
    assert_eq!(store.jobs().await.unwrap(), [read]);
}

pub(crate) async fn a_job_may_be_made_again_alike_and_not_otherwise(store: Store) {
    store.create(&id("a"), &job(3)).await.unwrap();
    assert_eq!(store.create(&id("a"), &job(3)).await, Ok(()));
    let exists = StoreError::Exists { job: id("a") };
    assert_eq!(store.create(&id("a"), &job(4)).await, Err(exists));
    assert_eq!(store.job(&id("a")).await.unwrap().job.plan(), job(3).plan);
}

pub(crate) async fn jobs_are_listed_from_the_oldest(store: Store) {
    for (name, created_unix_ms) in [("c", 1), ("a", 2), ("b", 2)] {
        store.create(&id(name), &NewJob { created_unix_ms, ..job(1) }).await.unwrap();
    }
    let ids: Vec<_> = store.jobs().await.unwrap().into_iter().map(|job| job.id.to_string()).collect();
    assert_eq!(ids, ["c", "a", "b"]);
}

pub(crate) async fn of_many_takers_exactly_one_gets_a_part(store: Store) {
    store.create(&id("a"), &job(1)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let takers: Vec<_> = (0..8)
        .map(|_| {
            let (store, seen) = (store.clone(), seen.clone());
            tokio::spawn(async move { store.take(&seen, Unit::Part(0)).await })
        })
        .collect();
    let mut leases = Vec::new();
    for taker in takers {
        match taker.await.unwrap() {
            Ok(lease) => leases.push(lease),
            Err(error) => assert_eq!(error, Refusal::Taken.into()),
        }
    }
    assert_eq!(leases.len(), 1);
    let place = store.job(&id("a")).await.unwrap().job.place(Unit::Part(0));
    assert_eq!(place, Place::Leased(leases[0].token));
}

pub(crate) async fn what_is_given_back_is_taken_under_a_later_token(store: Store) {
    store.create(&id("a"), &job(1)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let mut tokens = BTreeSet::new();
    for _ in 0..3 {
        let lease = store.take(&seen, Unit::Part(0)).await.unwrap();
        assert!(tokens.last().is_none_or(|last| *last < lease.token));
        tokens.insert(lease.token);
        store.give_back(&lease).await.unwrap();
        // Once more is fine.
        store.give_back(&lease).await.unwrap();
    }
}

pub(crate) async fn a_late_owner_changes_nothing(store: Store) {
    store.create(&id("a"), &job(2)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let late = store.take(&seen, Unit::Part(0)).await.unwrap();
    store.give_back(&late).await.unwrap();
    let failed = Counts { succeeded: 0, failed: 1 };
    assert_eq!(store.finish(&late, failed).await, Err(Refusal::LeaseLost.into()));

    let good = store.take(&seen, Unit::Part(0)).await.unwrap();
    assert_eq!(store.finish(&late, failed).await, Err(Refusal::LeaseLost.into()));
    store.give_back(&late).await.unwrap();
    assert_eq!(store.finish(&good, ONE).await, Ok(Finish::Now));
    assert_eq!(store.finish(&late, failed).await, Ok(Finish::Before));
    assert_eq!(store.job(&id("a")).await.unwrap().job.place(Unit::Part(0)), Place::Done(ONE));
}

pub(crate) async fn a_job_is_done_part_by_part(store: Store) {
    store.create(&id("a"), &job(3)).await.unwrap();
    for part in 0..3 {
        let seen = store.job(&id("a")).await.unwrap();
        assert_eq!(seen.job.next(0), Some(Unit::Part(part)));
        let lease = store.take(&seen, Unit::Part(part)).await.unwrap();
        let counts = Counts { succeeded: u64::from(part), failed: 1 };
        assert_eq!(store.finish(&lease, counts).await, Ok(Finish::Now));
        // As where the answer was lost and the owner asks again.
        assert_eq!(store.finish(&lease, counts).await, Ok(Finish::Before));
    }
    let seen = store.job(&id("a")).await.unwrap();
    assert_eq!((seen.job.next(0), seen.job.state(0)), (Some(Unit::File), State::Running));
    let lease = store.take(&seen, Unit::File).await.unwrap();
    assert_eq!(store.finish(&lease, Counts::default()).await, Ok(Finish::Now));
    let done = store.job(&id("a")).await.unwrap();
    assert_eq!(done.job.finished(), Some(Counts { succeeded: 3, failed: 3 }));
    assert_eq!((done.job.state(0), done.job.next(0)), (State::Done, None));
    assert_eq!(done.body, job(3).body);
    assert_eq!(store.change(&id("a"), Change::Cancel).await, Err(Refusal::Finished.into()));
}

pub(crate) async fn the_file_is_not_taken_before_every_part_is_done(store: Store) {
    store.create(&id("a"), &job(2)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let lease = store.take(&seen, Unit::Part(0)).await.unwrap();
    store.finish(&lease, ONE).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    assert_eq!(store.take(&seen, Unit::File).await, Err(Refusal::NotWanted.into()));
    assert_eq!(store.take(&seen, Unit::Part(2)).await, Err(Refusal::NotWanted.into()));
}

pub(crate) async fn a_cancelled_job_gives_nothing_out_until_it_is_resumed(store: Store) {
    store.create(&id("a"), &job(2)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let lease = store.take(&seen, Unit::Part(0)).await.unwrap();
    let cancelled = store.change(&id("a"), Change::Cancel).await.unwrap();
    assert_eq!(cancelled.job.wish(), Wish::Cancel);
    assert_eq!(cancelled, store.job(&id("a")).await.unwrap());
    assert_eq!(store.change(&id("a"), Change::Cancel).await.unwrap(), cancelled);
    assert_eq!(store.take(&cancelled, Unit::Part(1)).await, Err(Refusal::NotWanted.into()));
    // What is done by then is kept.
    assert_eq!(store.finish(&lease, ONE).await, Ok(Finish::Now));

    let resumed = store.change(&id("a"), Change::Resume { now: 0, deadline: None }).await.unwrap();
    assert_eq!(resumed.job.next(0), Some(Unit::Part(1)));
    assert!(store.take(&resumed, Unit::Part(1)).await.is_ok());
}

pub(crate) async fn who_saw_an_older_job_takes_nothing(store: Store) {
    store.create(&id("a"), &job(2)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    store.change(&id("a"), Change::Cancel).await.unwrap();
    assert_eq!(store.take(&seen, Unit::Part(0)).await, Err(StoreError::Changed));
}

pub(crate) async fn a_job_is_removed_when_nobody_works_on_it(store: Store) {
    store.create(&id("a"), &job(2)).await.unwrap();
    store.create(&id("ab"), &job(2)).await.unwrap();
    let seen = store.job(&id("a")).await.unwrap();
    let part = store.take(&seen, Unit::Part(0)).await.unwrap();
    let deleting = store.change(&id("a"), Change::Delete).await.unwrap();
    assert_eq!(deleting.job.state(0), State::Deleting);
    assert_eq!(store.take(&deleting, Unit::Removal).await, Err(Refusal::NotWanted.into()));
    store.give_back(&part).await.unwrap();

    let deleting = store.job(&id("a")).await.unwrap();
    let removal = store.take(&deleting, Unit::Removal).await.unwrap();
    assert_eq!(store.finish(&removal, Counts::default()).await, Ok(Finish::Now));
    assert_eq!(store.job(&id("a")).await, Err(StoreError::NotFound { job: id("a") }));
    assert_eq!(store.jobs().await.unwrap().len(), 1);
    // The id is free again, and nothing is left of the one before.
    store.create(&id("a"), &job(2)).await.unwrap();
    assert_eq!(store.job(&id("a")).await.unwrap().job.progress().pending, 2);
}

pub(crate) async fn what_is_not_there_is_not_found(store: Store) {
    let missing = StoreError::NotFound { job: id("a") };
    assert_eq!(store.job(&id("a")).await, Err(missing.clone()));
    assert_eq!(store.change(&id("a"), Change::Cancel).await, Err(missing));
    assert_eq!(store.jobs().await, Ok(vec![]));
}

pub(crate) async fn a_deadline_can_be_moved(store: Store) {
    store.create(&id("a"), &NewJob { deadline: Some(5), ..job(1) }).await.unwrap();
    let moved = store.change(&id("a"), Change::Resume { now: 9, deadline: Some(20) }).await.unwrap();
    assert_eq!(moved.job.deadline(), Some(20));
    let lifted = store.change(&id("a"), Change::Resume { now: 30, deadline: None }).await.unwrap();
    assert_eq!(lifted.job.deadline(), None);
    assert_eq!(store.job(&id("a")).await.unwrap(), lifted);
}
