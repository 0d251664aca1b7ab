//! Calls to replicas that come, go, fail and hang, over gRPC.

mod replica;

use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::{Address, InstanceId, Member, Members};
use thicket_dispatch::{Backoff, HedgeAfter, ImageKey, QueueLimits, Share};
use thicket_proto::v1::EmbedTextRequest;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_runtime::{Deadline, Fault, Role, request_by};
use thicket_upstream::{Ask, Settings, Upstream};
use tokio::sync::watch;
use tonic::Code;

use crate::replica::{Does, Replica};

/// Long enough for any machine; nothing waits for its end.
const WAIT: Duration = Duration::from_secs(20);

fn settings() -> Settings {
    let dispatch = thicket_dispatch::Settings {
        backoff: Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(50) },
        retries: Share { percent: 100, burst: 100 },
        ..Default::default()
    };
    Settings { dispatch, patience: Duration::from_millis(300), token: None }
}

/// Some replicas and a caller of them.
struct Bench {
    members: watch::Sender<Arc<Members>>,
    upstream: Upstream,
}

impl Bench {
    fn of(replicas: &[&Replica], settings: Settings) -> Self {
        let (members, followed) = watch::channel(list(replicas));
        let upstream = Upstream::follow(Role::Embedding, followed, settings).unwrap();
        Self { members, upstream }
    }

    fn set(&self, replicas: &[&Replica]) {
        self.members.send_replace(list(replicas));
    }

    async fn serving(&self, count: usize) {
        let arrives = async {
            while self.upstream.serving() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(WAIT, arrives).await.unwrap_or_else(|_| panic!("{count} replicas never served"));
    }

    async fn ask(&self, ask: Ask) -> Result<String, Fault> {
        self.ask_until(ask, Deadline::after(WAIT)).await
    }

    /// The name of whoever answers.
    async fn ask_until(&self, ask: Ask, deadline: Deadline) -> Result<String, Fault> {
        let send = |peer| {
            let request = request_by(EmbedTextRequest { texts: vec!["a person".to_owned()] }, deadline);
            async move { EmbeddingServiceClient::new(peer).embed_text(request).await }
        };
        Ok(self.upstream.call(ask, deadline, send).await?.model_fingerprint)
    }
}

fn list(replicas: &[&Replica]) -> Arc<Members> {
    Members::new(replicas.iter().map(|replica| {
        let address = Address::parse(&format!("http://{}", replica.address)).unwrap();
        let mut member = Member::new(Role::Embedding, InstanceId::new(&replica.name).unwrap(), address);
        member.capacity = 4;
        member
    }))
}

fn about(image: &str) -> Ask {
    Ask { image: Some(ImageKey::of(image.as_bytes())), ..Ask::default() }
}

#[tokio::test]
async fn questions_about_one_image_go_to_one_replica_and_those_of_many_to_all() {
    let (a, b, c) = (Replica::start("a").await, Replica::start("b").await, Replica::start("c").await);
    let bench = Bench::of(&[&a, &b, &c], settings());
    bench.serving(3).await;
    let mut answered = std::collections::HashSet::new();
    for image in 0..24 {
        let image = format!("image {image}");
        let first = bench.ask(about(&image)).await.unwrap();
        assert_eq!(bench.ask(about(&image)).await.unwrap(), first);
        answered.insert(first);
    }
    assert_eq!(answered.len(), 3);
}

#[tokio::test]
async fn a_call_that_a_replica_cannot_answer_goes_to_another() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    a.does(Does::Fails(Fault::unavailable("ENGINE_LOST", "lost", Duration::ZERO)));
    for image in 0..8 {
        assert_eq!(bench.ask(about(&image.to_string())).await.unwrap(), "b");
    }
    assert!(a.calls() > 0);
}

#[tokio::test]
async fn an_overloaded_replica_is_left_alone_for_as_long_as_it_asks() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    a.does(Does::Fails(Fault::exhausted("QUEUE_FULL", "full", Duration::from_secs(60))));
    let mut settings = settings();
    settings.dispatch.backoff.cap = Duration::from_secs(60);
    let bench = Bench::of(&[&a, &b], settings);
    bench.serving(2).await;
    for image in 0..12 {
        assert_eq!(bench.ask(about(&image.to_string())).await.unwrap(), "b");
    }
    assert_eq!(a.calls(), 1);
}

#[tokio::test]
async fn what_is_wrong_with_the_call_itself_is_not_tried_again() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    for replica in [&a, &b] {
        replica.does(Does::Fails(Fault::invalid("texts[0]", "TEXT_EMPTY", "empty")));
    }
    assert_eq!(bench.ask(Ask::default()).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(a.calls() + b.calls(), 1);
}

#[tokio::test]
async fn a_replica_that_dies_with_a_call_leaves_it_to_another() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], settings());
    bench.serving(2).await;
    a.does(Does::Hangs);
    let call = bench.ask(Ask::default());
    tokio::pin!(call);
    // Whoever is least loaded: ask until the one that hangs has it.
    while a.calls() == 0 {
        let one = tokio::time::timeout(Duration::from_millis(50), &mut call).await;
        match one {
            Ok(answer) => {
                assert_eq!(answer.unwrap(), "b");
                call.set(bench.ask(Ask::default()));
            }
            Err(_) => assert!(a.calls() > 0),
        }
    }
    a.kill();
    assert_eq!(tokio::time::timeout(WAIT, call).await.unwrap().unwrap(), "b");
    bench.serving(1).await;
}

#[tokio::test]
async fn a_member_that_vanishes_without_a_word_loses_its_calls_to_others() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    a.does(Does::Hangs);
    let call = bench.ask(Ask::default());
    tokio::pin!(call);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut call).await.is_err());
    bench.set(&[&b]);
    assert_eq!(tokio::time::timeout(WAIT, call).await.unwrap().unwrap(), "b");
}

#[tokio::test]
async fn a_draining_replica_gets_nothing_new_and_finishes_what_it_has() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    a.does(Does::Waits);
    let call = bench.ask(Ask::default());
    tokio::pin!(call);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut call).await.is_err());
    bench.set(&[&a, &b]);
    bench.serving(2).await;
    a.drain();
    bench.serving(1).await;
    for image in 0..6 {
        assert_eq!(bench.ask(about(&image.to_string())).await.unwrap(), "b");
    }
    a.release();
    assert_eq!(tokio::time::timeout(WAIT, call).await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn a_replica_that_comes_back_is_used_again() {
    let a = Replica::start("a").await;
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    let address = a.address;
    a.kill();
    bench.serving(0).await;
    let again = Replica::start_at("a", address).await;
    bench.serving(1).await;
    assert_eq!(bench.ask(Ask::default()).await.unwrap(), "a");
    assert_eq!(again.calls(), 1);
}

#[tokio::test]
async fn a_member_that_says_something_else_of_itself_goes_on_serving() {
    let a = Replica::start("a").await;
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    let mut changed = list(&[&a]).of(Role::Embedding)[0].clone();
    changed.collections = vec!["lobby".to_owned()];
    bench.members.send_replace(Members::new([changed]));
    // Longer than a member that has gone may take to say that it drains.
    let until = std::time::Instant::now() + Duration::from_millis(2_500);
    while std::time::Instant::now() < until {
        assert_eq!(bench.ask(Ask::default()).await.unwrap(), "a");
        assert_eq!(bench.upstream.serving(), 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_member_that_comes_back_at_once_is_not_taken_out_by_its_own_farewell() {
    let a = Replica::start("a").await;
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    bench.set(&[]);
    bench.serving(0).await;
    bench.set(&[&a]);
    bench.serving(1).await;
    let until = std::time::Instant::now() + Duration::from_millis(2_500);
    while std::time::Instant::now() < until {
        assert_eq!(bench.ask(Ask::default()).await.unwrap(), "a");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn without_a_replica_calls_wait_a_while_and_are_unavailable_then() {
    let bench = Bench::of(&[], settings());
    let fault = bench.ask(Ask::default()).await.unwrap_err();
    assert!(matches!(&fault, Fault::Unavailable { reason, .. } if reason == "NO_REPLICA"), "{fault:?}");
    assert_eq!(bench.upstream.one(Deadline::after(WAIT)).await.unwrap_err().code(), Code::Unavailable);

    let waiting = bench.ask(Ask::default());
    let a = Replica::start("a").await;
    let (answer, ()) = tokio::join!(waiting, async { bench.set(&[&a]) });
    assert_eq!(answer.unwrap(), "a");
}

#[tokio::test]
async fn more_calls_than_may_wait_are_refused_with_a_pause() {
    let a = Replica::start("a").await;
    let mut settings = settings();
    settings.dispatch.queue = QueueLimits { high: 2, low: 1, ahead: 0 };
    let bench = Bench::of(&[&a], settings);
    bench.serving(1).await;
    a.does(Does::Waits);
    let calls = futures(&bench, 4 + 2);
    let refused = async {
        loop {
            if let Err(fault) =
                bench.ask_until(Ask::default(), Deadline::after(Duration::from_millis(20))).await
                && fault.code() == Code::ResourceExhausted
            {
                assert!(matches!(fault, Fault::Exhausted { retry_after: Some(_), .. }), "{fault:?}");
                return a.release();
            }
        }
    };
    let (answers, ()) = tokio::join!(calls, refused);
    assert!(answers.into_iter().all(|answer| answer.unwrap() == "a"));
}

async fn futures(bench: &Bench, count: usize) -> Vec<Result<String, Fault>> {
    futures::future::join_all((0..count).map(|_| bench.ask(Ask::default()))).await
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_waits_and_one_that_runs() {
    let a = Replica::start("a").await;
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    a.does(Does::Hangs);
    let soon = || Deadline::after(Duration::from_millis(40));
    let calls = (0..6).map(|_| bench.ask_until(Ask::default(), soon()));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap_err(), Fault::DeadlineExceeded);
    }
    assert_eq!(a.calls(), 4, "two of them never left");
}

#[tokio::test]
async fn dropping_a_call_frees_its_place() {
    let a = Replica::start("a").await;
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    a.does(Does::Hangs);
    for _ in 0..3 {
        let calls = futures(&bench, 4);
        assert!(tokio::time::timeout(Duration::from_millis(30), calls).await.is_err());
    }
    a.does(Does::Answers);
    assert_eq!(bench.ask(Ask::default()).await.unwrap(), "a");
}

#[tokio::test]
async fn a_straggler_is_answered_by_another_replica_first() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let mut settings = settings();
    settings.dispatch.hedge_after = HedgeAfter::Fixed(Duration::from_millis(20));
    settings.dispatch.hedges = Share { percent: 100, burst: 10 };
    let bench = Bench::of(&[&a, &b], settings);
    bench.serving(2).await;
    a.does(Does::Hangs);
    for image in 0..8 {
        assert_eq!(bench.ask(about(&image.to_string())).await.unwrap(), "b");
    }
    assert!(a.calls() > 0);
}
