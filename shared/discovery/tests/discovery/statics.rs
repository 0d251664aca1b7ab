use thicket_discovery::{Address, Directory, Link, Source, StaticPeer};
use thicket_runtime::Role;

use crate::support::{is_down, is_up, sees, within};

fn peer(role: Role, address: &str) -> StaticPeer {
    StaticPeer { role, address: Address::parse(address).unwrap(), writable: true }
}

#[tokio::test]
async fn a_static_list_needs_no_etcd() {
    let peers =
        vec![peer(Role::Answer, "http://10.0.0.1:7703"), peer(Role::Gallery, "http://[fd00::1]:7702")];
    let directory = Directory::start(Source::Static(peers)).unwrap();
    within(directory.known()).await.unwrap();
    is_up(&directory).await;
    let members = directory.members();
    assert_eq!(members.of(Role::Answer)[0].address.to_string(), "http://10.0.0.1:7703");
    assert_eq!(members.of(Role::Gallery)[0].address.to_string(), "http://[fd00::1]:7702");
}

#[tokio::test]
async fn a_host_name_becomes_its_addresses() {
    let directory =
        Directory::start(Source::Static(vec![peer(Role::Answer, "http://localhost:7703")])).unwrap();
    let members = sees(&directory, |members| !members.is_empty()).await;
    for member in members.of(Role::Answer) {
        let address = member.address.to_string();
        assert!(["http://127.0.0.1:7703", "http://[::1]:7703"].contains(&address.as_str()), "{address}");
    }
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_told_and_takes_nothing_down() {
    let peers =
        vec![peer(Role::Answer, "http://nobody.invalid:7703"), peer(Role::Gallery, "http://10.0.0.2:7702")];
    let directory = Directory::start(Source::Static(peers)).unwrap();
    within(directory.known()).await.unwrap();
    let mut link = directory.link();
    within(link.wait_for(|link| *link != Link::Down { reason: "not connected yet".to_owned() }))
        .await
        .unwrap();
    let reason = is_down(&directory).await;
    assert!(reason.starts_with("nobody.invalid cannot be resolved"), "{reason}");
    assert_eq!(directory.members().len(), 1);
}
