//! Calls to replicas that come, go, fail and hang, over gRPC.

mod place;
mod replica;

use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::{Address, InstanceId, Member, Members};
use thicket_dispatch::{Backoff, HedgeAfter, ImageKey, Lane, QueueLimits, Share, Silence};
use thicket_proto::v1::EmbedTextRequest;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_runtime::{Deadline, Fault, Role, request_by};
use thicket_upstream::{Ask, Probing, Settings, Turn, Upstream};
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
    Settings { dispatch, patience: Duration::from_millis(300), ..Settings::default() }
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

    async fn ask_ahead(&self, turn: &Turn) -> Result<String, Fault> {
        let deadline = Deadline::after(WAIT);
        let send = |peer| {
            let request = request_by(EmbedTextRequest { texts: vec!["a person".to_owned()] }, deadline);
            async move { EmbeddingServiceClient::new(peer).embed_text(request).await }
        };
        let ask = Ask { lane: Lane::Low, ..Ask::default() };
        Ok(self.upstream.call_ahead(ask, turn, deadline, send).await?.model_fingerprint)
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

/// A call is lost after a tenth of a second, and nothing is retried on the budget.
fn impatient(eject_after: u32) -> Settings {
    let mut settings = settings();
    let tenth = Duration::from_millis(100);
    settings.dispatch.silence = Some(Silence { least: tenth, percent: 1_000, unknown: tenth, eject_after });
    settings.dispatch.backoff = Backoff { base: WAIT, cap: WAIT };
    settings.dispatch.retries = Share { percent: 0, burst: 1 };
    settings
}

#[tokio::test]
async fn a_replica_that_leaves_a_call_unanswered_is_asked_no_more() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a, &b], impatient(2));
    bench.serving(2).await;
    a.does(Does::Hangs);
    for image in 0..12 {
        assert_eq!(bench.ask(about(&image.to_string())).await.unwrap(), "b");
    }
    assert_eq!(a.calls(), 1);
}

#[tokio::test]
async fn what_a_hung_replica_has_is_answered_by_others_and_costs_no_retry() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let bench = Bench::of(&[&a], impatient(2));
    bench.serving(1).await;
    a.does(Does::Hangs);
    let calls = futures(&bench, 4);
    tokio::pin!(calls);
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut calls).await.is_err());
    bench.set(&[&a, &b]);
    let answers = calls.await;
    // One of them is lost, the next ejects the replica with all others: one retry is paid for, as the budget has it.
    assert!(answers.into_iter().all(|answer| answer.unwrap() == "b"));
}

#[tokio::test]
async fn a_process_that_answers_no_health_check_loses_its_calls_until_it_does() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let soon = Duration::from_millis(50);
    let settings = Settings { probing: Probing { every: soon, limit: soon, misses: 2 }, ..settings() };
    let bench = Bench::of(&[&a], settings);
    bench.serving(1).await;
    a.does(Does::Blocks);
    let call = bench.ask(Ask::default());
    tokio::pin!(call);
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut call).await.is_err());
    bench.set(&[&a, &b]);
    assert_eq!(call.await.unwrap(), "b");
    bench.serving(1).await;
    a.does(Does::Answers);
    a.release();
    bench.serving(2).await;
}

#[tokio::test]
async fn what_an_overloaded_replica_refuses_costs_no_retry() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let mut settings = settings();
    settings.dispatch.retries = Share { percent: 0, burst: 0 };
    let bench = Bench::of(&[&a, &b], settings);
    bench.serving(2).await;
    a.does(Does::Fails(Fault::exhausted("QUEUE_FULL", "full", Duration::from_millis(1))));
    let mut image = 0;
    while a.calls() < 4 {
        assert_eq!(bench.ask(about(&image.to_string())).await.unwrap(), "b");
        image += 1;
    }
}

#[tokio::test]
async fn a_call_made_ahead_waits_for_an_idle_replica_or_for_its_turn() {
    let a = Replica::start("a").await;
    let bench = Bench::of(&[&a], settings());
    bench.serving(1).await;
    assert_eq!(bench.ask_ahead(&Turn::default()).await.unwrap(), "a");

    a.does(Does::Waits);
    let turn = Turn::default();
    let calls = async { tokio::join!(bench.ask(Ask::default()), bench.ask_ahead(&turn)) };
    tokio::pin!(calls);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut calls).await.is_err());
    assert_eq!((a.calls(), bench.upstream.idle()), (2, 0), "the call ahead left");
    turn.come();
    let all_are_there = async {
        while a.calls() < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        a.release();
    };
    let (answers, ()) = tokio::join!(calls, all_are_there);
    assert_eq!((answers.0.unwrap(), answers.1.unwrap()), ("a".to_owned(), "a".to_owned()));
}

/// Members that were ignored for their model so far, in this process.
fn ignored_for_their_model() -> f64 {
    let text = thicket_telemetry::prometheus_text();
    let series = "thicket_discovery_ignored_total{reason=\"model\"} ";
    text.lines().find_map(|line| line.strip_prefix(series)).map_or(0.0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_replica_with_another_model_is_not_called_and_counted_once() {
    let (a, b, c) = (Replica::start("a").await, Replica::start("b").await, Replica::start("c").await);
    let bench = Bench::of(&[], settings());
    let before = ignored_for_their_model();
    let members = |collection: &str| {
        let all = list(&[&a, &b, &c]);
        Members::new(all.of(Role::Embedding).iter().cloned().map(|mut member| {
            let is_odd = member.address.port() == c.address.port();
            member.fingerprint = Some(if is_odd { "another" } else { "common" }.to_owned());
            // What the others say of themselves changes; the odd one has been told of.
            if !is_odd {
                member.collections = vec![collection.to_owned()];
            }
            member
        }))
    };
    for collection in ["lobby", "yard", "roof"] {
        bench.members.send_replace(members(collection));
        bench.serving(2).await;
        for image in 0..8 {
            assert_ne!(bench.ask(about(&image.to_string())).await.unwrap(), "c");
        }
    }
    assert_eq!(c.calls(), 0);
    assert_eq!(ignored_for_their_model() - before, 1.0);
}
