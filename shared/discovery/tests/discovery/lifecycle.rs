use thicket_discovery::{DiscoveryError, Link, Standing};
use thicket_runtime::Role;

use crate::etcd::Etcd;
use crate::support::{are, follow, is_up, member, register, sees, stands, within};

#[tokio::test]
async fn a_member_appears_with_everything_it_says_of_itself() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    within(directory.known()).await.unwrap();
    assert!(directory.members().is_empty());
    let mut answer = member(Role::Answer, "answer-0");
    answer.fingerprint = Some("ab12".to_owned());
    answer.adapters = vec!["cuhk".to_owned(), "icfg".to_owned()];
    answer.capacity = 32;
    let _registration = register(&etcd.config(), answer.clone()).await;
    let mut gallery = member(Role::Gallery, "gallery-0");
    gallery.collections = vec!["lobby".to_owned()];
    let _registration = register(&etcd.config(), gallery.clone()).await;
    let members = sees(&directory, |members| members.len() == 2).await;
    assert_eq!(members.of(Role::Answer), [answer]);
    assert_eq!(members.of(Role::Gallery), [gallery]);
}

#[tokio::test]
async fn who_comes_later_finds_who_was_there() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut registrations = Vec::new();
    // More than fit on one page of a listing.
    for n in 0..70 {
        registrations.push(register(&etcd.config(), member(Role::Gallery, &format!("gallery-{n}"))).await);
    }
    let directory = follow(&etcd.config());
    within(directory.known()).await.unwrap();
    assert_eq!(directory.members().of(Role::Gallery).len(), 70);
}

#[tokio::test]
async fn a_member_that_dies_vanishes_when_its_lease_runs_out() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let registration = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let _other = register(&etcd.config(), member(Role::Gallery, "b")).await;
    sees(&directory, are(["a", "b"])).await;
    drop(registration);
    sees(&directory, are(["b"])).await;
}

#[tokio::test]
async fn an_update_is_seen() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let mut answer = member(Role::Answer, "a");
    let registration = register(&etcd.config(), answer.clone()).await;
    answer.adapters.push("cuhk".to_owned());
    registration.update(answer.clone()).unwrap();
    sees(&directory, |members| members.of(Role::Answer) == [answer.clone()]).await;
}

#[tokio::test]
async fn an_update_that_does_not_fit_changes_nothing() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let registration = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let renamed = registration.update(member(Role::Gallery, "b"));
    assert!(matches!(renamed, Err(DiscoveryError::Renamed { .. })), "{renamed:?}");
    let mut empty_name = member(Role::Gallery, "a");
    empty_name.collections.push(String::new());
    let refused = registration.update(empty_name);
    assert!(matches!(refused, Err(DiscoveryError::Member(_))), "{refused:?}");
    sees(&directory, are(["a"])).await;
    registration.close().await.unwrap();
}

#[tokio::test]
async fn a_withdrawn_member_is_gone_and_keeps_its_lease_until_it_is_closed() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let registration = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    let mut client = etcd.client().await;
    registration.withdraw().await.unwrap();
    sees(&directory, are([])).await;
    assert_eq!(client.leases().await.unwrap().leases().len(), 1);
    // What is withdrawn stays so, whatever it says of itself.
    let mut changed = member(Role::Gallery, "a");
    changed.capacity = 7;
    registration.update(changed).unwrap();
    registration.withdraw().await.unwrap();
    stands(&registration, Standing::Withdrawn).await;
    registration.close().await.unwrap();
    assert!(client.leases().await.unwrap().leases().is_empty());
    assert!(directory.members().is_empty());
}

#[tokio::test]
async fn a_member_that_closes_is_gone_before_its_lease_runs_out() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut config = etcd.config();
    config.lease_ttl = std::time::Duration::from_secs(600);
    let directory = follow(&config);
    let registration = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    registration.close().await.unwrap();
    sees(&directory, are([])).await;
}

#[tokio::test]
async fn what_changes_nothing_wakes_nobody() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let a = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    let mut members = directory.subscribe();
    members.mark_unchanged();
    let woken = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.last() != Some(&2) {
            members.changed().await.unwrap();
            seen.push(members.borrow_and_update().len());
        }
        seen
    });
    // The same value once more is an event of etcd's, and so are keys that are no members.
    let mut client = etcd.client().await;
    let key = "/thicket/v1/members/gallery/a";
    let found = client.get(key, None).await.unwrap();
    let options = etcd_client::PutOptions::new().with_lease(found.kvs()[0].lease());
    client.put(key, found.kvs()[0].value(), Some(options)).await.unwrap();
    client.put("/thicket/v1/other", "x", None).await.unwrap();
    // When a later event has come through, so have they.
    let b = register(&etcd.config(), member(Role::Gallery, "b")).await;
    assert_eq!(within(woken).await.unwrap(), [2]);
    drop((a, b));
}

#[tokio::test]
async fn clusters_with_other_prefixes_do_not_see_each_other() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut north = etcd.config();
    north.prefix = "/people/north".parse().unwrap();
    let mut south = etcd.config();
    south.prefix = "/people/south".parse().unwrap();
    let directory = follow(&north);
    let _south = register(&south, member(Role::Gallery, "s")).await;
    let _north = register(&north, member(Role::Gallery, "n")).await;
    sees(&directory, are(["n"])).await;
}

#[tokio::test]
async fn a_directory_that_is_dropped_says_that_it_has_stopped() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    is_up(&directory).await;
    let mut link = directory.link();
    drop(directory);
    let stopped = within(link.wait_for(|link| !link.is_up())).await.unwrap().clone();
    assert_eq!(stopped, Link::Down { reason: "discovery has stopped".to_owned() });
}
