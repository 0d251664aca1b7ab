use etcd_client::Client;
use thicket_discovery::Standing;
use thicket_runtime::Role;

use crate::etcd::Etcd;
use crate::support::{are, eventually, follow, member, register, sees, stands};

const KEY: &str = "/thicket/v1/members/gallery/a";

/// The lease that the key is under, 0 where there is no key.
async fn lease_of(client: &Client, key: &str) -> i64 {
    let found = client.kv_client().get(key, None).await.unwrap();
    found.kvs().first().map_or(0, etcd_client::KeyValue::lease)
}

#[tokio::test]
async fn a_lease_revoked_behind_its_back_is_taken_anew() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let _registration = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let mut client = etcd.client().await;
    let lease = lease_of(&client, KEY).await;
    client.lease_revoke(lease).await.unwrap();
    let is_back = async || ![0, lease].contains(&lease_of(&client, KEY).await);
    eventually("it is back under another lease", is_back, String::new).await;
    sees(&directory, are(["a"])).await;
}

#[tokio::test]
async fn a_key_deleted_behind_its_back_is_put_again() {
    let Some(etcd) = Etcd::start().await else { return };
    let _registration = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let mut client = etcd.client().await;
    let lease = lease_of(&client, KEY).await;
    client.delete(KEY, None).await.unwrap();
    let is_back = async || lease_of(&client, KEY).await == lease;
    eventually("it is back under its lease", is_back, String::new).await;
}

#[tokio::test]
async fn a_value_overwritten_under_its_lease_is_put_right() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let right = member(Role::Gallery, "a");
    let _registration = register(&etcd.config(), right.clone()).await;
    sees(&directory, are(["a"])).await;
    let mut wrong = right.clone();
    wrong.capacity = 9;
    let mut client = etcd.client().await;
    let options = etcd_client::PutOptions::new().with_lease(lease_of(&client, KEY).await);
    client.put(KEY, wrong.encode().unwrap(), Some(options)).await.unwrap();
    let is_right = async || {
        let found = client.kv_client().get(KEY, None).await.unwrap();
        found.kvs().iter().any(|entry| entry.version() > 2 && entry.value() == right.encode().unwrap())
    };
    eventually("it is put right", is_right, String::new).await;
}

#[tokio::test]
async fn of_two_processes_by_one_name_the_later_counts_until_it_leaves() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let first = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let mut later = member(Role::Gallery, "a");
    later.capacity = 2;
    let second = register(&etcd.config(), later.clone()).await;
    sees(&directory, |members| members.of(Role::Gallery) == [later.clone()]).await;
    stands(&first, Standing::Superseded).await;
    // Neither an update nor a farewell of the first touches what is the second's.
    let mut changed = member(Role::Gallery, "a");
    changed.capacity = 3;
    first.update(changed.clone()).unwrap();
    sees(&directory, |members| members.of(Role::Gallery) == [later.clone()]).await;
    second.close().await.unwrap();
    stands(&first, Standing::Registered).await;
    sees(&directory, |members| members.of(Role::Gallery) == [changed.clone()]).await;
}

#[tokio::test]
async fn who_is_superseded_takes_nothing_of_the_others_along() {
    let Some(etcd) = Etcd::start().await else { return };
    let first = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let _second = register(&etcd.config(), member(Role::Gallery, "a")).await;
    stands(&first, Standing::Superseded).await;
    let client = etcd.client().await;
    let put =
        async || client.kv_client().get(KEY, None).await.unwrap().kvs().first().map(|entry| entry.version());
    let before = put().await;
    assert_eq!(before, Some(2));
    first.withdraw().await.unwrap();
    first.close().await.unwrap();
    assert_eq!(put().await, before);
}

#[tokio::test]
async fn a_restarted_process_keeps_its_name_when_the_old_lease_runs_out() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let first = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let mut client = etcd.client().await;
    let old = lease_of(&client, KEY).await;
    drop(first);
    let _second = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let is_gone = async || {
        let leases = client.clone().leases().await.unwrap();
        leases.leases().iter().all(|lease| lease.id() != old)
    };
    eventually("the old lease has run out", is_gone, String::new).await;
    assert_ne!(lease_of(&client, KEY).await, 0);
    sees(&directory, are(["a"])).await;
    client.delete(KEY, None).await.unwrap();
}

#[tokio::test]
async fn a_busy_process_keeps_its_lease() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let _registration = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    let client = etcd.client().await;
    let lease = lease_of(&client, KEY).await;
    // Three times the lease: this test's runtime does nothing else, as in a process whose every thread computes.
    std::thread::sleep(etcd.config().lease_ttl * 3);
    assert_eq!(lease_of(&client, KEY).await, lease);
}
