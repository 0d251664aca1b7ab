//! Questions that are asked before their turn, and calls that are made twice: no event changes.

use std::time::Duration;

use thicket_coordinator::Config;
use thicket_dispatch::HedgeAfter;
use thicket_proto::v1::{Outcome, SearchPersonRequest};
use thicket_runtime::Fault;
use tokio::sync::mpsc;
use tonic::Code;

use crate::fakes::{Bench, Says, World, request};
use crate::worlds::random;

const WORLDS: u64 = 150;
const ANSWERERS: usize = 4;

/// The first ranking is `a b c d e`, below xi: every round may be asked.
fn low() -> World {
    World::of(&[(0.45, 0.1), (0.4, 0.2), (0.35, 0.3), (0.3, 0.4), (0.25, 0.5)])
}

fn ahead(config: &mut Config) {
    config.calling.ask_ahead = 3;
}

fn in_turn(config: &mut Config) {
    config.calling.ask_ahead = 0;
}

/// Waits until every answer replica can be asked, so that there is somebody idle.
async fn warmed_up(bench: &Bench) {
    let none = SearchPersonRequest { collection: "nowhere".into(), ..request() };
    assert_eq!(bench.search(none).await.unwrap_err().code(), Code::NotFound);
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn what_is_asked_ahead_changes_no_event_whatever_the_answers_and_however_long_they_take() {
    let plain = Bench::start_several(random(0).world, 1, in_turn).await;
    let eager = Bench::start_several(random(0).world, ANSWERERS, ahead).await;
    warmed_up(&eager).await;
    let mut in_vain = 0;
    for seed in 0..WORLDS {
        let case = random(seed);
        *plain.world() = case.world.clone();
        *eager.world() = World { takes: Some(seed << 8), ..case.world };
        let wanted = plain.search(case.request.clone()).await.expect("a search");
        let events = eager.search(case.request).await.expect("a search");
        assert_eq!(events, wanted, "seed {seed}");
        let needed = plain.world().count("locate:");
        let asked = eager.world().count("locate:");
        assert!(asked >= needed, "seed {seed}: {asked} of {needed}");
        in_vain += asked - needed;
    }
    assert!(in_vain > 10, "only {in_vain} questions were asked ahead in vain");
}

#[tokio::test]
async fn a_question_asked_ahead_is_stopped_as_soon_as_an_earlier_yes_makes_it_needless() {
    let (held, mut released) = mpsc::channel(1);
    let world = low().saying("b", Says::YesAfter("c")).saying("c", Says::Hang(held));
    let bench = Bench::start_several(world, ANSWERERS, ahead).await;
    warmed_up(&bench).await;
    let end = bench.finish(request()).await;
    assert_eq!((end.outcome(), end.anchor_id.as_str()), (Outcome::Refined, "b"));
    // What the plain algorithm asks, not what was asked ahead.
    assert_eq!(end.questions.unwrap().locate, 2);
    bench.world().says.clear();
    assert!(released.recv().await.is_none(), "the question about c goes on");
    let metrics = thicket_telemetry::prometheus_text();
    let counted = metrics
        .lines()
        .any(|line| line.starts_with("thicket_thi_ahead_total{") && line.contains("outcome=\"cancelled\""));
    assert!(counted, "{metrics}");
}

#[tokio::test]
async fn a_question_that_fails_ahead_of_its_turn_fails_no_search_that_does_not_need_it() {
    let fault = Fault::failed_precondition("ADAPTER_UNKNOWN", "no such adapter");
    let world = low().saying("b", Says::YesAfter("c")).saying("c", Says::Fails(fault));
    let bench = Bench::start_several(world, ANSWERERS, ahead).await;
    warmed_up(&bench).await;
    assert_eq!(bench.finish(request()).await.outcome(), Outcome::Refined);
}

#[tokio::test]
async fn a_question_that_failed_ahead_of_its_turn_is_asked_anew_when_it_comes() {
    let fault = Fault::failed_precondition("ADAPTER_UNKNOWN", "no such adapter");
    let bench = Bench::start_several(low().saying("c", Says::Fails(fault)), ANSWERERS, ahead).await;
    warmed_up(&bench).await;
    assert_eq!(bench.search(request()).await.unwrap_err().code(), Code::FailedPrecondition);
    let world = bench.world();
    let about = |image: &str| world.log.iter().filter(|line| line.ends_with(&format!(":{image}"))).count();
    // Asked about and its image fetched: twice each where it was asked ahead, once where it was not.
    assert!(about("c") >= 2 && about("a") == 2, "{:?}", world.log);
}

#[tokio::test]
async fn a_single_answer_replica_is_asked_one_question_at_a_time() {
    let bench = Bench::start_several(low(), 1, ahead).await;
    warmed_up(&bench).await;
    assert_eq!(bench.finish(request()).await.outcome(), Outcome::NoneConfirmed);
    assert_eq!(bench.world().count("locate:"), 5);
}

#[tokio::test]
async fn a_question_that_takes_long_is_asked_of_a_second_replica_where_that_is_wanted() {
    let (held, mut released) = mpsc::channel(1);
    let bench = Bench::start_several(low().saying("b", Says::HangFirst(held)), 2, |config| {
        in_turn(config);
        config.calling.hedge_after = HedgeAfter::Fixed(Duration::from_millis(20));
        config.calling.hedge_percent = 100;
    })
    .await;
    assert_eq!(bench.finish(request()).await.anchor_id, "b");
    // The first answer wins, and the other copy is stopped.
    bench.world().says.clear();
    assert!(released.recv().await.is_none());
}
