use std::time::Duration;

use thicket_discovery::{Address, DiscoveryError, EtcdConfig, Link, Registration, Standing};
use thicket_runtime::Role;

use crate::etcd::{Etcd, ip};
use crate::proxy::Proxy;
use crate::support::{are, follow, is_down, is_up, member, register, sees, stands, within};

#[tokio::test]
async fn a_watch_goes_on_after_a_compaction() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let _a = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    let mut client = etcd.client().await;
    let mut revision = 0;
    for _ in 0..20 {
        revision = client.put("/noise", "x", None).await.unwrap().header().unwrap().revision();
    }
    client.compact(revision, None).await.unwrap();
    let _b = register(&etcd.config(), member(Role::Gallery, "b")).await;
    sees(&directory, are(["a", "b"])).await;
}

#[tokio::test]
async fn what_was_compacted_while_the_way_was_cut_is_not_missed() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::to(&etcd.nodes[0].url).await;
    let mut config = etcd.config();
    config.endpoints = vec![proxy.address.clone()];
    let directory = follow(&config);
    let _a = register(&etcd.config(), member(Role::Gallery, "a")).await;
    let b = register(&etcd.config(), member(Role::Gallery, "b")).await;
    sees(&directory, are(["a", "b"])).await;
    proxy.cut();
    is_down(&directory).await;
    b.close().await.unwrap();
    let _c = register(&etcd.config(), member(Role::Gallery, "c")).await;
    let mut client = etcd.client().await;
    let revision = client.put("/noise", "x", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    assert!(are(["a", "b"])(&directory.members()));
    proxy.mend();
    sees(&directory, are(["a", "c"])).await;
}

#[tokio::test]
async fn a_way_that_falls_silent_is_noticed_and_taken_again() {
    let Some(etcd) = Etcd::start().await else { return };
    let proxy = Proxy::to(&etcd.nodes[0].url).await;
    let mut config = etcd.config();
    config.endpoints = vec![proxy.address.clone()];
    let directory = follow(&config);
    let _a = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    proxy.fall_silent();
    is_down(&directory).await;
    let _b = register(&etcd.config(), member(Role::Gallery, "b")).await;
    assert!(are(["a"])(&directory.members()));
    proxy.mend();
    sees(&directory, are(["a", "b"])).await;
}

#[tokio::test]
async fn a_registration_moves_to_an_endpoint_that_can_be_reached() {
    let Some(etcd) = Etcd::start().await else { return };
    let (one, two) = (Proxy::to(&etcd.nodes[0].url).await, Proxy::to(&etcd.nodes[0].url).await);
    let mut config = etcd.config();
    config.endpoints = vec![one.address.clone(), two.address.clone()];
    config.lease_ttl = Duration::from_secs(30);
    let registration = register(&config, member(Role::Gallery, "a")).await;
    let client = etcd.client().await;
    let leases = client.clone().leases().await.unwrap().leases().len();
    let mut link = registration.link();
    for (cut, other) in [(&one, &two), (&two, &one)] {
        cut.cut();
        other.mend();
        let other = other.address.to_string();
        let moved = |link: &Link| matches!(link, Link::Up { endpoint } if *endpoint == other);
        // It notices when it has something to say.
        let mut changed = member(Role::Gallery, "a");
        changed.capacity = if std::ptr::eq(cut, &one) { 2 } else { 3 };
        registration.update(changed).unwrap();
        within(link.wait_for(moved)).await.unwrap();
    }
    // The lease went along.
    assert_eq!(client.clone().leases().await.unwrap().leases().len(), leases);
    assert_eq!(*registration.standing().borrow(), Standing::Registered);
}

#[tokio::test]
async fn members_are_kept_while_etcd_is_dead_and_followed_when_it_is_back() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let _a = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    is_up(&directory).await;
    etcd.nodes[0].kill();
    let reason = is_down(&directory).await;
    assert!(reason.starts_with(&etcd.nodes[0].url) && reason.lines().count() == 1, "{reason}");
    assert!(are(["a"])(&directory.members()));
    etcd.nodes[0].restart();
    is_up(&directory).await;
    sees(&directory, are(["a"])).await;
    let _b = register(&etcd.config(), member(Role::Gallery, "b")).await;
    sees(&directory, are(["a", "b"])).await;
}

#[tokio::test]
async fn an_etcd_that_hangs_is_noticed_and_found_again() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = follow(&etcd.config());
    let a = register(&etcd.config(), member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    is_up(&directory).await;
    etcd.nodes[0].pause();
    is_down(&directory).await;
    let mut link = a.link();
    within(link.wait_for(|link| !link.is_up())).await.unwrap();
    assert!(are(["a"])(&directory.members()));
    etcd.nodes[0].resume();
    is_up(&directory).await;
    within(link.wait_for(Link::is_up)).await.unwrap();
    let _b = register(&etcd.config(), member(Role::Gallery, "b")).await;
    sees(&directory, are(["a", "b"])).await;
}

#[tokio::test]
async fn the_death_of_one_etcd_of_three_is_survived() {
    let Some(mut etcd) = Etcd::cluster(3).await else { return };
    let config = etcd.config();
    let directory = follow(&config);
    let _a = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    let used = is_up(&directory).await;
    etcd.node(&used).kill();
    let mut link = directory.link();
    let moved = |link: &Link| match link {
        Link::Up { endpoint } => *endpoint != used,
        Link::Down { .. } => false,
    };
    within(link.wait_for(moved)).await.unwrap();
    let _b = register(&config, member(Role::Gallery, "b")).await;
    sees(&directory, are(["a", "b"])).await;
}

#[tokio::test]
async fn a_hanging_etcd_among_three_is_left_for_another() {
    let Some(mut etcd) = Etcd::cluster(3).await else { return };
    let config = etcd.config();
    let directory = follow(&config);
    let used = is_up(&directory).await;
    etcd.node(&used).pause();
    let _a = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    etcd.node(&used).resume();
}

#[tokio::test]
async fn a_watch_on_an_etcd_without_a_leader_is_left() {
    let Some(mut etcd) = Etcd::cluster(3).await else { return };
    let config = etcd.config();
    let directory = follow(&config);
    let used = is_up(&directory).await;
    let others: Vec<_> = etcd.nodes.iter().map(|node| node.url.clone()).filter(|url| *url != used).collect();
    for other in &others {
        etcd.node(other).kill();
    }
    is_down(&directory).await;
    for other in &others {
        etcd.node(other).restart();
    }
    is_up(&directory).await;
}

#[tokio::test]
async fn one_may_start_before_etcd() {
    let Some(mut etcd) = Etcd::start().await else { return };
    etcd.nodes[0].kill();
    let directory = follow(&etcd.config());
    let registration = Registration::start(&etcd.config(), member(Role::Gallery, "a")).unwrap();
    let mut link = registration.link();
    within(link.wait_for(|link| *link != Link::Down { reason: "not connected yet".to_owned() }))
        .await
        .unwrap();
    assert_eq!(*registration.standing().borrow(), Standing::Waiting);
    etcd.nodes[0].restart();
    within(registration.registered()).await.unwrap();
    within(directory.known()).await.unwrap();
    sees(&directory, are(["a"])).await;
}

#[tokio::test]
async fn a_registration_that_never_was_is_closed_without_etcd() {
    // Nothing listens there.
    let endpoint = Address::parse(&format!("http://{}:9", ip())).unwrap();
    let registration =
        Registration::start(&EtcdConfig::new(vec![endpoint]), member(Role::Gallery, "a")).unwrap();
    let mut standing = registration.standing();
    registration.close().await.unwrap();
    // The thread ends: nothing changes any more.
    while within(standing.changed()).await.is_ok() {}
    assert_eq!(*standing.borrow(), Standing::Closed);
}

#[tokio::test]
async fn a_farewell_that_etcd_does_not_hear_has_a_limit() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut config = etcd.config();
    config.timing.goodbye = Duration::from_millis(200);
    let directory = follow(&config);
    let registration = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    etcd.nodes[0].pause();
    let unheard = registration.close().await;
    assert!(matches!(unheard, Err(DiscoveryError::Timeout { .. })), "{unheard:?}");
    etcd.nodes[0].resume();
    sees(&directory, are([])).await;
}

#[tokio::test]
async fn a_withdrawal_that_etcd_did_not_hear_is_tried_further() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut config = etcd.config();
    config.timing.goodbye = Duration::from_millis(200);
    let directory = follow(&config);
    let registration = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    etcd.nodes[0].pause();
    let unheard = registration.withdraw().await;
    assert!(matches!(unheard, Err(DiscoveryError::Timeout { .. })), "{unheard:?}");
    etcd.nodes[0].resume();
    stands(&registration, Standing::Withdrawn).await;
    sees(&directory, are([])).await;
}
