use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use thicket_runtime::MAX_CONCURRENT_STREAMS;
use tokio::time::timeout;

use crate::address::Host;
use crate::backoff::Backoff;
use crate::directory::StaticPeer;
use crate::follow::Publisher;
use crate::{Address, InstanceId, Member, Members, shown};

/// Calls that a peer which says nothing of itself is sent at a time: as many as one connection carries.
const UNKNOWN_CAPACITY: u32 = MAX_CONCURRENT_STREAMS;
/// How often the names of a static list are resolved.
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Most addresses of one name that become members.
const MAX_ADDRESSES: usize = 1024;

/// A peer and the addresses that it had when it was resolved last.
#[derive(Debug)]
struct Resolved {
    peer: StaticPeer,
    addresses: Vec<Address>,
}

/// Follows a static list for ever.
pub(crate) async fn follow(
    peers: Vec<StaticPeer>,
    mut publisher: Publisher,
    resolve: impl AsyncFn(&str, u16) -> io::Result<Vec<IpAddr>>,
) {
    let mut list: Vec<_> = peers.into_iter().map(|peer| Resolved { peer, addresses: Vec::new() }).collect();
    let mut backoff = Backoff::new(FIRST_WAIT, RESOLVE_INTERVAL);
    loop {
        let failure = refresh(&mut list, &resolve).await.err();
        publisher.publish(members(&list));
        match failure {
            None => {
                publisher.link.up("");
                backoff = Backoff::new(FIRST_WAIT, RESOLVE_INTERVAL);
                tokio::time::sleep(RESOLVE_INTERVAL).await;
            }
            Some(reason) => {
                publisher.link.failed(&reason);
                tokio::time::sleep(backoff.after(Duration::ZERO)).await;
            }
        }
    }
}

/// Names as the operating system resolves them.
pub(crate) async fn by_system(name: &str, port: u16) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, port)).await?.map(|address| address.ip()).collect())
}

/// Resolves every name once more. One that fails keeps what it had; the first failure is given back.
async fn refresh(
    list: &mut [Resolved],
    resolve: &impl AsyncFn(&str, u16) -> io::Result<Vec<IpAddr>>,
) -> Result<(), String> {
    let mut first_failure = Ok(());
    for Resolved { peer, addresses } in list {
        match current(&peer.address, resolve).await {
            Ok(now) => *addresses = now,
            Err(reason) => first_failure = first_failure.and(Err(reason)),
        }
    }
    first_failure
}

async fn current(
    address: &Address,
    resolve: &impl AsyncFn(&str, u16) -> io::Result<Vec<IpAddr>>,
) -> Result<Vec<Address>, String> {
    let Host::Name(name) = address.host() else { return Ok(vec![address.clone()]) };
    if address.is_secure() {
        return Ok(vec![address.clone()]);
    }
    let failed = |reason: &str| format!("{name} cannot be resolved: {}", shown(reason));
    let found = timeout(RESOLVE_LIMIT, resolve(name, address.port()))
        .await
        .map_err(|_| failed(&format!("no answer in {RESOLVE_LIMIT:?}")))?
        .map_err(|error| failed(&error.to_string()))?;
    let found: BTreeSet<_> = found.into_iter().collect();
    let usable = found.into_iter().filter_map(|ip| Address::of_ip(ip, address.port()).ok());
    match usable.take(MAX_ADDRESSES).collect::<Vec<_>>() {
        none if none.is_empty() => Err(failed("it has no address")),
        usable => Ok(usable),
    }
}

fn members(list: &[Resolved]) -> std::sync::Arc<Members> {
    Members::new(list.iter().flat_map(|Resolved { peer, addresses }| {
        addresses.iter().map(|address| {
            let member = Member::new(peer.role, InstanceId::of_address(address), address.clone());
            Member { capacity: UNKNOWN_CAPACITY, writable: peer.writable, ..member }
        })
    }))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use thicket_runtime::Role;

    use super::*;

    fn list(addresses: &[&str]) -> Vec<Resolved> {
        let peer = |text: &&str| StaticPeer {
            role: Role::Answer,
            address: Address::parse(text).unwrap(),
            writable: true,
        };
        addresses.iter().map(|text| Resolved { peer: peer(text), addresses: Vec::new() }).collect()
    }

    fn shown_members(list: &[Resolved]) -> Vec<String> {
        members(list).iter().map(|member| member.address.to_string()).collect()
    }

    /// Resolves from a table; an empty entry is a failure.
    async fn from_table(
        list: &mut [Resolved],
        table: &RefCell<HashMap<&str, Vec<IpAddr>>>,
    ) -> Result<(), String> {
        let resolve = async |name: &str, _port: u16| match table.borrow().get(name) {
            Some(found) => Ok(found.clone()),
            None => Err(io::Error::other("no such host")),
        };
        refresh(list, &resolve).await
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn a_name_is_as_many_members_as_it_has_addresses() {
        let mut list = list(&["http://answer:7703", "http://10.0.0.9:7703"]);
        let table = RefCell::new(HashMap::from([("answer", vec![ip(2), ip(1), ip(2)])]));
        from_table(&mut list, &table).await.unwrap();
        let expected = ["http://10.0.0.1:7703", "http://10.0.0.2:7703", "http://10.0.0.9:7703"];
        assert_eq!(shown_members(&list), expected);
        table.borrow_mut().insert("answer", vec![ip(3)]);
        from_table(&mut list, &table).await.unwrap();
        assert_eq!(shown_members(&list), ["http://10.0.0.3:7703", "http://10.0.0.9:7703"]);
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_any_more_keeps_what_it_had() {
        let mut list = list(&["http://one:7703", "http://two:7703"]);
        let table = RefCell::new(HashMap::from([("one", vec![ip(1)]), ("two", vec![ip(2)])]));
        from_table(&mut list, &table).await.unwrap();
        table.borrow_mut().remove("one");
        table.borrow_mut().insert("two", vec![ip(3)]);
        let reason = from_table(&mut list, &table).await.unwrap_err();
        assert_eq!(reason, "one cannot be resolved: no such host");
        assert_eq!(shown_members(&list), ["http://10.0.0.1:7703", "http://10.0.0.3:7703"]);
    }

    #[tokio::test]
    async fn a_name_without_usable_addresses_is_a_failure() {
        let mut list = list(&["http://answer:7703"]);
        let table = RefCell::new(HashMap::from([("answer", vec![IpAddr::from([0, 0, 0, 0])])]));
        assert!(from_table(&mut list, &table).await.is_err());
    }

    #[tokio::test]
    async fn a_name_called_over_tls_stays_a_name() {
        let mut list = list(&["https://answer:7703"]);
        from_table(&mut list, &RefCell::default()).await.unwrap();
        assert_eq!(shown_members(&list), ["https://answer:7703"]);
    }
}
