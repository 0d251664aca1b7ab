//! Calls that belong together, and calls that write.

use std::collections::HashSet;
use std::time::Duration;

use thicket_discovery::{Address, InstanceId, Member, Members};
use thicket_proto::v1::EmbedTextRequest;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_runtime::{Deadline, Fault, Role, request_by};
use thicket_upstream::{Ask, Place, Upstream};
use tokio::sync::watch;
use tonic::Code;

use crate::replica::{Does, Replica};
use crate::{Bench, WAIT, settings};

impl Bench {
    /// The name of whoever answers at a place.
    async fn ask_at(&self, place: &Place) -> Result<String, Fault> {
        let deadline = Deadline::after(WAIT);
        let send = |peer| {
            let request = request_by(EmbedTextRequest { texts: vec!["a person".to_owned()] }, deadline);
            async move { EmbeddingServiceClient::new(peer).embed_text(request).await }
        };
        Ok(self.upstream.call_at(place, Ask::default(), deadline, send).await?.model_fingerprint)
    }
}

#[tokio::test]
async fn calls_of_one_place_go_to_one_replica_and_those_of_many_to_all() {
    let (a, b, c) = (Replica::start("a").await, Replica::start("b").await, Replica::start("c").await);
    let bench = Bench::of(&[&a, &b, &c], settings());
    bench.serving(3).await;
    let mut answered = HashSet::new();
    // Each place falls to one of the three by a hash: that sixty miss one of them is as good as impossible.
    for _ in 0..60 {
        let place = Place::default();
        let first = bench.ask_at(&place).await.unwrap();
        for _ in 0..4 {
            assert_eq!(bench.ask_at(&place.clone()).await.unwrap(), first);
        }
        answered.insert(first);
    }
    assert_eq!(answered.len(), 3);
}

#[tokio::test]
async fn a_place_moves_where_its_replica_fails_and_stays_there() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    let place = Place::default();
    let first = bench.ask_at(&place).await.unwrap();
    let (lost, other) = if first == "a" { (&a, "b") } else { (&b, "a") };
    lost.does(Does::Fails(Fault::unavailable("REPLICA_BEHIND", "behind", Duration::ZERO)));
    assert_eq!(bench.ask_at(&place).await.unwrap(), other);
    lost.does(Does::Answers);
    assert_eq!(bench.ask_at(&place).await.unwrap(), other);
}

#[tokio::test]
async fn what_is_wrong_with_a_call_at_a_place_is_not_tried_again() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    for replica in [&a, &b] {
        replica.does(Does::Fails(Fault::not_found("item", "7")));
    }
    assert_eq!(bench.ask_at(&Place::default()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(a.calls() + b.calls(), 1);
}

#[tokio::test]
async fn a_call_that_every_replica_fails_is_given_up_with_their_fault() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    for replica in [&a, &b] {
        replica.does(Does::Fails(Fault::unavailable("DISK_LOST", "lost", Duration::ZERO)));
    }
    let fault = bench.ask_at(&Place::default()).await.unwrap_err();
    assert_eq!((fault.code(), fault.reason().as_ref()), (Code::Unavailable, "DISK_LOST"));
    // How often each is asked before patience ends depends on the machine.
    assert!(a.calls() > 0 && b.calls() > 0 && a.calls() + b.calls() > 2);
}

#[tokio::test]
async fn what_writes_goes_to_the_replica_that_takes_writes() {
    let (reads, writes) = (Replica::start("reads").await, Replica::start("writes").await);
    let member = |replica: &Replica, writable| {
        let address = Address::parse(&format!("http://{}", replica.address)).unwrap();
        let member = Member::new(Role::Embedding, InstanceId::new(&replica.name).unwrap(), address);
        Member { writable, ..member }
    };
    let both = Members::new([member(&reads, false), member(&writes, true)]);
    let (tell, followed) = watch::channel(both);
    let upstream = Upstream::follow(Role::Embedding, followed, settings()).unwrap();
    while upstream.serving() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for _ in 0..4 {
        let peer = upstream.one(Deadline::after(WAIT)).await.unwrap();
        let answered =
            EmbeddingServiceClient::new(peer).embed_text(EmbedTextRequest::default()).await.unwrap();
        assert_eq!(answered.into_inner().model_fingerprint, "writes");
    }
    tell.send_replace(Members::new([member(&reads, false)]));
    while upstream.serving() > 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let fault = upstream.one(Deadline::after(WAIT)).await.unwrap_err();
    assert_eq!((fault.code(), fault.reason().as_ref()), (Code::Unavailable, "NO_WRITER"));
}
