use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::{
    Address, Directory, EtcdConfig, InstanceId, Link, Member, Members, Registration, Source, Standing,
};
use thicket_runtime::Role;

/// How long anything may take before a test gives up; never what a test measures.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until something holds; gives up after [`DEADLINE`] with what `else_say` says.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool, else_say: impl Fn() -> String) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let held = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(held.is_ok(), "not in {DEADLINE:?}: {what}\n{}", else_say());
}

/// What a future gives, or the end of the test after [`DEADLINE`].
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not in {DEADLINE:?}"),
    }
}

pub(crate) fn member(role: Role, instance: &str) -> Member {
    let address = Address::parse("http://127.0.0.1:7702").unwrap();
    Member::new(role, InstanceId::new(instance).unwrap(), address)
}

pub(crate) fn follow(config: &EtcdConfig) -> Directory {
    Directory::start(Source::Etcd(Box::new(config.clone()))).unwrap()
}

/// Registers and waits until it is done.
pub(crate) async fn register(config: &EtcdConfig, member: Member) -> Registration {
    let registration = Registration::start(config, member).unwrap();
    stands(&registration, Standing::Registered).await;
    registration
}

pub(crate) async fn stands(registration: &Registration, wanted: Standing) {
    let mut standing = registration.standing();
    let reached = tokio::time::timeout(DEADLINE, standing.wait_for(|standing| *standing == wanted)).await;
    assert!(reached.is_ok(), "not in {DEADLINE:?}: {wanted:?}, but {:?}", *registration.standing().borrow());
    reached.unwrap().unwrap();
}

/// Waits until a directory's members are as wanted.
pub(crate) async fn sees(directory: &Directory, wanted: impl Fn(&Members) -> bool) -> Arc<Members> {
    let mut members = directory.subscribe();
    let seen = tokio::time::timeout(DEADLINE, members.wait_for(|members| wanted(members))).await;
    let Ok(seen) = seen else { panic!("not in {DEADLINE:?}; seen are {:?}", directory.members()) };
    seen.unwrap().clone()
}

/// Whether exactly these instances of the gallery are there.
pub(crate) fn are<const N: usize>(instances: [&str; N]) -> impl Fn(&Members) -> bool {
    move |members| {
        let found: Vec<_> = members.of(Role::Gallery).iter().map(|member| member.instance.as_str()).collect();
        found == instances
    }
}

/// Waits until a directory is connected; gives back the endpoint.
pub(crate) async fn is_up(directory: &Directory) -> String {
    let mut link = directory.link();
    let up =
        tokio::time::timeout(DEADLINE, link.wait_for(Link::is_up)).await.map(|link| link.unwrap().clone());
    match up {
        Ok(Link::Up { endpoint }) => endpoint,
        _ => panic!("not in {DEADLINE:?}: connected, but {:?}", *directory.link().borrow()),
    }
}

/// Waits until a directory says that it is not connected; gives back the reason.
pub(crate) async fn is_down(directory: &Directory) -> String {
    let mut link = directory.link();
    let down = tokio::time::timeout(DEADLINE, link.wait_for(|link| !link.is_up())).await;
    match down.map(|link| link.unwrap().clone()) {
        Ok(Link::Down { reason }) => reason,
        _ => panic!("still connected after {DEADLINE:?}"),
    }
}
